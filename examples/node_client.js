// Any Redis client will do: ioredis (npm install ioredis), with nothing of ours.
const { randomUUID } = require("node:crypto");
const { Redis } = require("ioredis");

const fields = (reply) => Object.fromEntries(reply.flatMap((x, i) => (i % 2 ? [] : [[x, reply[i + 1]]])));

async function main() {
  const [host, port] = (process.env.LOCKD_ENDPOINTS || "127.0.0.1:7420").split(",")[0].split(":");
  const redis = new Redis({ host, port: Number(port) });

  // A request id makes it safe that ioredis sends it again when the connection breaks.
  const asked = process.hrtime.bigint();
  const grant = fields(await redis.call("LOCK.ACQUIRE", "invoice:42", "TTL", 10000, "REQUEST", randomUUID()));
  console.log(`${grant.lock} is ours, under token ${grant.token}`);

  // The lease may be trusted for ttl_ms, less a margin, from before it was asked for; see docs/PROTOCOL.md.
  const left = grant.ttl_ms - 200 - Number(process.hrtime.bigint() - asked) / 1e6;
  if (left < 1000) throw new Error("too late");

  const other = redis.call("LOCK.ACQUIRE", "invoice:42", "TTL", 10000, "REQUEST", randomUUID());
  await other.catch((busy) => console.log(busy.message.split(" | ")[0].split(" for ")[0]));

  const freed = await redis.call("LOCK.RELEASE", "invoice:42", grant.token, "SESSION", grant.session);
  console.log(`released: ${freed}`);
  await redis.call("SESSION.CLOSE", grant.session);
  await redis.quit();
}

main();
