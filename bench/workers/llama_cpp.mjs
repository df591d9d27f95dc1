// Generation with llama.cpp: `{"prompt": [...], "new": n}` is answered with the seconds after which
// each new token came. The first line names the model.

import os from "node:os";
import readline from "node:readline";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const lines = readline.createInterface({input: process.stdin})[Symbol.asyncIterator]();
const next = async () => {
    const {value, done} = await lines.next();
    return done ? null : JSON.parse(value);
};
const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const seconds = (begun) => Number(process.hrtime.bigint() - begun) / 1e9;

const {model: modelPath} = await next();
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const begun = process.hrtime.bigint();
const model = await llama.loadModel({modelPath});
const load = seconds(begun);
const threads = os.cpus().length;
const context = await model.createContext({contextSize: 1024, batchSize: 512, threads});
const sequence = context.getSequence();
answer({threads, load_seconds: load});

for (let question = await next(); question != null; question = await next()) {
    await sequence.clearHistory();
    const begun = process.hrtime.bigint();
    const times = [];
    const tokens = [];
    for await (const token of sequence.evaluate(question.prompt, {temperature: 0, yieldEogToken: true})) {
        times.push(seconds(begun));
        tokens.push(token);
        if (tokens.length >= question.new) break;
    }
    answer({times, tokens});
}
process.exit(0);
