"use strict";

const PERIOD_MS = 2000;
const SHOWN_MAX = 200;
let queueOf = null;

const at = (id) => document.getElementById(id);

async function get(path, query = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`);
  const told = await response.json();
  if (!response.ok) throw new Error(`${told.error}: ${told.text}`);
  return told;
}

/* A row of cells: a text, or an element. Texts are never read as HTML. */
function row(cells) {
  const line = document.createElement("tr");
  for (const cell of cells) {
    line.insertCell().append(cell instanceof Node ? cell : String(cell ?? ""));
  }
  return line;
}

function fill(table, rows) {
  const columns = [...at(table).tHead.rows[0].cells].map((head) => head.textContent.trim());
  for (const line of rows) columns.forEach((column, index) => { line.cells[index].dataset.column = column; });
  at(table).tBodies[0].replaceChildren(...rows);
}

function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 1) return `${ms} ms`;
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}

const meta = (value) => (value === null ? "" : JSON.stringify(value));
const who = (view) => (view.name ? `${view.name} (${view.session})` : `session ${view.session}`);

function role(member, status) {
  if (member.node === status.leader) return `leader of term ${status.term}`;
  if (member.node === status.node) return status.role;
  return member.voter ? "follower" : "learner";
}

function showStatus(status) {
  at("cluster").textContent = `cluster ${status.cluster}, incarnation ${status.incarnation}, seen from node ${status.node}`;
  fill("nodes", status.members.map((member) => row([
    member.node,
    role(member, status),
    member.voter ? "yes" : member.wants_vote ? "when caught up" : "no",
    member.alive ? "yes" : "no",
    member.node === status.node ? `${status.last_applied} of ${status.log_last} applied` : member.match_index || "",
    member.client,
    member.peer,
  ])));
  at("counts").textContent =
    `${status.locks} locks, ${status.waiters} waiting, ${status.sessions} sessions, revision ${status.revision}`;
}

function queueButton(lock) {
  if (!lock.queue_length) return "";
  const button = document.createElement("button");
  button.textContent = String(lock.queue_length);
  button.addEventListener("click", () => {
    queueOf = queueOf === lock.lock ? null : lock.lock;
    refresh();
  });
  return button;
}

function mode(lock) {
  if (lock.limit) return `semaphore, ${lock.used} of ${lock.limit} taken`;
  if (lock.delay_ms) return `free in ${duration(lock.delay_ms)}`;
  return lock.mode || "free";
}

function showLocks(page) {
  at("more").textContent = page.next === null ? "" : `the first ${SHOWN_MAX} are shown`;
  fill("locks", page.locks.flatMap((lock) => {
    if (!lock.holders.length) return [row([lock.lock, mode(lock), "", "", "", "", "", queueButton(lock)])];
    return lock.holders.map((holder, index) => {
      const first = index === 0;
      const line = row([
        first ? lock.lock : "",
        first ? mode(lock) : "",
        who(holder) + (lock.limit ? `, units: ${holder.weight}` : "") + (holder.ending ? `, ${holder.ending}` : ""),
        holder.owner,
        holder.token,
        duration(holder.held_ms),
        meta(holder.meta),
        first ? queueButton(lock) : "",
      ]);
      line.classList.toggle("ending", Boolean(holder.ending));
      return line;
    });
  }));
}

function showQueue(queue) {
  at("queue").hidden = queue === null;
  if (queue === null) return;
  at("queue-lock").textContent = queue.lock;
  fill("waiters", queue.waiters.map((waiter) => row([
    waiter.position,
    who(waiter),
    waiter.owner,
    waiter.locks.length > 1 ? `all of ${waiter.locks.join(", ")}` : waiter.mode,
    waiter.weight,
    duration(waiter.waiting_ms),
    meta(waiter.meta),
  ])));
}

let refreshing = null;

async function refresh() {
  clearTimeout(refreshing);
  try {
    showStatus(await get("/v1/status"));
    showLocks(await get("/v1/locks", { prefix: at("prefix").value, count: SHOWN_MAX }));
    showQueue(queueOf === null ? null : await get("/v1/locks/queue", { lock: queueOf }));
    at("problem").hidden = true;
  } catch (error) {
    at("problem").textContent = String(error.message ?? error);
    at("problem").hidden = false;
  }
  refreshing = setTimeout(refresh, PERIOD_MS);
}

at("prefix").addEventListener("input", refresh);
refresh();
