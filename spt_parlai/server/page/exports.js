// The chat as files: ParlAI's conversations, which its tools read, and Markdown.

import { dialogue, textOf } from './dialogue.js';

const exchanges = (model) => {
  const found = [];
  for (const turn of dialogue.turns) {
    if (turn.role === 'user') found.push({ said: turn.text });
    else if (found.length) found.at(-1).reply = turn.replies.find((reply) => reply.model === model);
  }
  return found.filter((exchange) => exchange.reply);
};

// One line for each model, as `parlai.utils.conversations.Conversations` reads it
export function conversations(models) {
  const episodes = models.map(({ id }) => ({
    id: 'spt chat',
    model: id,
    context: dialogue.persona.map((sentence) => ({ id: 'context', text: `your persona: ${sentence}` })),
    dialog: exchanges(id).map(({ said, reply }) => [
      { id: 'human', text: said, episode_done: false },
      {
        id: id,
        text: textOf(reply),
        episode_done: false,
        selected_prompt: reply.selected,
        prompt: reply.prompts[reply.used],
        prompt_scores: reply.scores,
        edited: Boolean(reply.edited),
        rating: reply.rating ?? null,
      },
    ]),
  }));
  const line = (episode) => JSON.stringify(episode).replace(/[\u0085\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return episodes.map((episode) => line(episode) + '\n').join('');
}

const escaped = (text) => text.replace(/[\\`*_{}[\]<>#|]/g, '\\$&');

export function markdown(models) {
  const lines = ['# Chat', '', ...models.map(({ id, spt_llm: llm }) => `- Model: ${escaped(id)} (LLM ${escaped(llm)})`)];
  if (dialogue.persona.length) lines.push('', '## Persona', '', ...dialogue.persona.map((sentence) => `- ${escaped(sentence)}`));
  lines.push('', '## Dialogue', '');
  for (const turn of dialogue.turns) {
    if (turn.role === 'user') lines.push(`**You:** ${escaped(turn.text)}`, '');
    else {
      for (const reply of turn.replies) {
        const prompt = reply.prompts[reply.used];
        const name = models.length > 1 ? escaped(reply.model) : 'Model';
        lines.push(`**${name}${prompt == null ? '' : ` (prompt ${prompt})`}:** ${escaped(textOf(reply))}`, '');
      }
    }
  }
  return lines.join('\n');
}
