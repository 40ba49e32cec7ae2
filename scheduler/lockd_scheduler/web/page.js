// The page works without this. It keeps what is marked `data-live` up to date, and follows the output of
// attempts that run. Everything is inserted as the server's own HTML, or as text.
"use strict";

const REFRESH_MS = 5000;
const TAIL_MS = 1000;
const AT_BOTTOM_PX = 40;

async function refresh() {
  const here = new URL(location.href);
  here.searchParams.delete("done");
  const response = await fetch(here, { redirect: "error" });
  if (!response.ok) return;
  const next = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = next.getElementById(part.id);
    // Nothing is pulled away from under a hand: a part with the focus in it waits.
    if (fresh && fresh.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) part.replaceWith(fresh);
  }
}

async function follow(pre) {
  const query = new URLSearchParams({ after: pre.dataset.after });
  const response = await fetch(`/api/v1/attempts/${pre.dataset.tail}/output?${query}`);
  if (!response.ok) return false;
  const { pieces, ended } = await response.json();
  const atBottom = pre.scrollHeight - pre.scrollTop - pre.clientHeight < AT_BOTTOM_PX;
  for (const piece of pieces) {
    const span = document.createElement("span");
    span.className = `o-${piece.stream}`;
    span.textContent = piece.text;
    pre.append(span);
    pre.dataset.after = piece.number;
  }
  if (pieces.length && atBottom) pre.scrollTop = pre.scrollHeight;
  return ended;
}

function every(ms, act) {
  const turn = async () => {
    let isDone = false;
    try {
      isDone = !document.hidden && (await act());
    } catch {
      // The server is away for a moment: the next turn asks again.
    }
    if (!isDone) setTimeout(turn, ms);
  };
  setTimeout(turn, ms);
}

if (document.querySelector("[data-live]")) every(REFRESH_MS, refresh);
for (const pre of document.querySelectorAll("[data-tail]")) {
  pre.scrollTop = pre.scrollHeight;
  every(TAIL_MS, () => follow(pre));
}
