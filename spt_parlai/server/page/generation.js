// Replies under way: ask a model, put what arrives into the reply, stop.

import { dialogue, keep, messagesFor } from './dialogue.js';
import { stream } from './server.js';

let controller = null;

export const isRunning = () => controller !== null;
export const stop = () => controller?.abort();

// Let replies of a turn be generated, all at once. changed() is called whenever one of them has changed.
// how(reply) → {prompt, temperature, n}; prompt '' lets the retriever select, a number forces one, 'all' asks every prompt.
export async function generate(index, replies, how, changed) {
  controller = new AbortController();
  const { signal } = controller;
  const running = replies.map((reply) => one(reply, messagesFor(reply.model, index), how(reply), signal, changed));
  keep();
  changed();
  await Promise.all(running);
  controller = null;
  keep();
  changed();
}

async function one(reply, messages, { prompt, temperature, n }, signal, changed) {
  const { topP, maxTokens } = dialogue.settings;
  const request = { model: reply.model, messages, temperature, top_p: topP, max_tokens: maxTokens };
  if (prompt !== '') request.spt_prompt = prompt;
  if (n > 0) Object.assign(request, { n, spt_rank_by: 'mbr' }); // the reply that agrees most with the others
  Object.assign(reply, { texts: [''], prompts: [null], used: 0, running: true, stopped: false, error: null, edited: false, rating: null });
  reply.forced = typeof prompt === 'number';
  reply.temperature = temperature;
  reply.ranking = null;
  try {
    for await (const chunk of stream(request, signal)) {
      if (chunk.spt_scores) {
        reply.scores = chunk.spt_scores;
        reply.selected = chunk.spt_prompt;
        reply.prompts = chunk.choices.map((choice) => choice.spt_prompt);
        reply.texts = reply.prompts.map(() => '');
        reply.used = Math.max(reply.prompts.indexOf(reply.selected), 0);
      }
      if (chunk.spt_ranking) {
        reply.ranking = chunk.spt_ranking;
        reply.used = reply.ranking.indexOf(Math.max(...reply.ranking));
      }
      for (const { index, delta } of chunk.choices) reply.texts[index] += delta.content ?? '';
      changed();
    }
  } catch (error) {
    if (error.name === 'AbortError') reply.stopped = true;
    else reply.error = error.message;
  }
  reply.running = false;
}
