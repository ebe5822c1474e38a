// The prompts by turn, as in figure 2 of the paper: a row for each prompt, a column for each reply, growing as it comes.

import { dialogue, shares } from './dialogue.js';
import { byId, h } from './elements.js';

export function showStrip(models, concealed) {
  const shown = models.filter((model) => model.spt_num_prompts > 1);
  byId('strip').hidden = concealed || !shown.some((model) => repliesOf(model).length);
  byId('strip-grid').replaceChildren(...shown.map((model) => grid(model, models.length > 1)));
  const spoken = shown.map((model) => {
    const used = repliesOf(model).map((reply) => reply.prompts[reply.used]);
    return `${model.id}: ${used.length ? `prompts ${used.join(', ')}` : 'no reply yet'}`;
  });
  byId('strip-grid').setAttribute('aria-label', `Prompt of every reply. ${spoken.join('. ')}`);
}

const repliesOf = (model) =>
  dialogue.turns
    .flatMap((turn) => turn.replies ?? [])
    .filter((reply) => reply.model === model.id && reply.scores);

function grid(model, named) {
  const replies = repliesOf(model);
  const rows = Array.from({ length: model.spt_num_prompts }, (_, k) => {
    const cells = replies.map((reply, turn) => {
      const share = shares(reply.scores);
      const [least, most] = [Math.min(...share), Math.max(...share)];
      const strength = most > least ? (share[k] - least) / (most - least) : 0;
      const used = reply.prompts[reply.used] === k;
      const title = `reply ${turn + 1}: prompt ${k} has ${percent(share[k])} of the scores${used ? ', used' : ''}`;
      return h('i', { class: used ? 'cell used' : 'cell', title, '--strength': 0.08 + 0.3 * strength });
    });
    return h('div', { class: `line prompt-${k % 8}` }, h('b', {}, String(k)), ...cells);
  });
  return h('div', { class: 'grid' }, named && h('span', { class: 'note' }, model.id), ...rows);
}

export const percent = (share) => `${Math.round(100 * share)}%`;
