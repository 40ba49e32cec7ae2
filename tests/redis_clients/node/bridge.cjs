// node bridge.cjs ioredis|node-redis PORT RESP: a JSON list of words on each line of standard input is a
// command; {"reply": ...} or {"refused": text} on a line of standard output its answer, in order.
const readline = require("node:readline");

async function connect(library, port, resp) {
  if (library === "ioredis") {
    const { Redis } = require("ioredis");
    const client = new Redis({ port, protocol: resp, maxRetriesPerRequest: 0 });
    return [(words) => client.call(words[0], ...words.slice(1)), () => client.quit()];
  }
  const { createClient } = require("@redis/client");
  const client = createClient({ socket: { port, reconnectStrategy: false }, RESP: resp });
  client.on("error", () => {});
  await client.connect();
  return [(words) => client.sendCommand(words), () => client.close()];
}

async function main(library, port, resp) {
  const [ask, close] = await connect(library, Number(port), Number(resp));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await ask(JSON.parse(line)).then(
      (reply) => ({ reply }),
      (error) => ({ refused: error.message }),
    );
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  await close();
}

main(...process.argv.slice(2));
