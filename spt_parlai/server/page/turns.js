// The turns of the dialogue as elements. What a button does is in `act`, which chat.js gives.

import { dialogue, shares, textOf } from './dialogue.js';
import { action, h } from './elements.js';
import { percent } from './strip.js';
import { marked, stems } from './words.js';

export function turnElement(index, view, act) {
  const turn = dialogue.turns[index];
  if (view.editing?.index === index && turn.role === 'user') return editor(turn.text, 'Your message', act);
  return turn.role === 'user' ? userElement(turn, index, view, act) : modelElement(turn, index, view, act);
}

function userElement(turn, index, view, act) {
  return h(
    'article',
    { class: 'turn user', 'aria-label': 'You' },
    h('div', { class: 'bubble' }, turn.text),
    h('div', { class: 'actions' }, action('edit', 'Edit', () => act.edit(index), { disabled: view.running })),
  );
}

function modelElement(turn, index, view, act) {
  const concealed = Boolean(turn.blind && !turn.vote);
  const columns = turn.order.map((which, place) => {
    const name = turn.replies.length > 1 ? (concealed ? `Model ${'AB'[place]}` : turn.replies[which].model) : null;
    return replyElement(turn.replies[which], index, which, name, concealed, view, act);
  });
  return h(
    'div',
    { class: columns.length > 1 ? 'turn model pair' : 'turn model' },
    ...columns,
    columns.length > 1 && !view.running && voting(turn, index, concealed, act),
  );
}

function replyElement(reply, index, which, name, concealed, view, act) {
  const prompt = reply.prompts[reply.used];
  const tint = concealed || prompt == null || reply.scores.length < 2 ? '' : ` prompt-${prompt % 8}`;
  const label = `${name ?? 'Model'}${reply.running ? ', replying' : ''}`;
  const all = reply.texts.length > 1 && !concealed; // of all prompts, side by side
  const isEdited = view.editing?.index === index && view.editing.which === which;
  return h(
    'article',
    { class: `reply${tint}`, 'aria-label': label, 'aria-busy': String(reply.running) },
    name && h('p', { class: 'who' }, name),
    isEdited ? editor(textOf(reply), 'Reply of the model', act) : !all && h('div', { class: 'bubble' }, ...bubble(reply)),
    reply.error && h('p', { class: 'error' }, reply.error),
    all && !isEdited && choices(reply, index, which, view, act),
    reply.scores?.length > 1 && !all && !concealed && bars(reply, index, which, view, act),
    !isEdited && actions(reply, index, which, concealed, view, act),
  );
}

function bubble(reply) {
  const text = textOf(reply);
  const nodes = marked(text, stems(dialogue.persona));
  if (reply.running) nodes.push(h('span', { class: text ? 'caret' : 'caret waiting' }));
  else if (!text && !reply.error) nodes.push(h('em', {}, reply.stopped ? 'stopped before the first word' : 'an empty reply'));
  return nodes;
}

function bars(reply, index, which, view, act) {
  const used = reply.prompts[reply.used];
  const cells = shares(reply.scores).map((share, k) => {
    const role = `${k === reply.selected ? ', selected by the retriever' : ''}${k === used ? ', used here' : ''}`;
    return h(
      'button',
      {
        type: 'button',
        class: `bar prompt-${k % 8}${k === reply.selected ? ' selected' : ''}${k === used ? ' used' : ''}`,
        onclick: () => act.force(index, which, k),
        disabled: view.running,
        'aria-label': `Prompt ${k}: ${percent(share)} of the scores${role}. Reply with it`,
        title: `score ${reply.scores[k]}${role}; click to reply with prompt ${k}`,
      },
      h('span', { class: 'name' }, `prompt ${k}`, k === reply.selected && h('b', { class: 'badge' }, 'selected')),
      h('span', { class: 'share' }, percent(share)),
      h('span', { class: 'track' }, h('i', { '--share': share })),
    );
  });
  return h('div', { class: 'bars', role: 'group', 'aria-label': 'Shares of the prompts' }, ...cells);
}

function choices(reply, index, which, view, act) {
  const shared = stems(dialogue.persona);
  const share = shares(reply.scores);
  const order = [...reply.texts.keys()];
  if (reply.ranking) order.sort((a, b) => reply.ranking[b] - reply.ranking[a]);
  const card = (text, i) =>
    h(
      'li',
      { class: `choice prompt-${reply.prompts[i] % 8}${i === reply.used ? ' used' : ''}` },
      h(
        'span',
        { class: 'name' },
        `prompt ${reply.prompts[i]} · ${reply.ranking ? `agreement ${reply.ranking[i].toFixed(2)}` : percent(share[reply.prompts[i]])}`,
        !reply.ranking && reply.prompts[i] === reply.selected && h('b', { class: 'badge' }, 'selected'),
      ),
      h('p', {}, ...marked(text, shared), reply.running && h('span', { class: 'caret' })),
      i === reply.used
        ? h('span', { class: 'note' }, 'used')
        : action('check', 'Use', () => act.use(index, which, i), { disabled: view.running, 'aria-label': `Use the reply of prompt ${reply.prompts[i]}` }),
    );
  return h('ul', { class: 'choices', 'aria-label': 'Replies of all prompts' }, ...order.map((i) => card(reply.texts[i], i)));
}

function actions(reply, index, which, concealed, view, act) {
  if (reply.running) return null;
  const off = { disabled: view.running };
  const rated = (value) => ({ ...off, class: 'action bare', title: value > 0 ? 'Good reply' : 'Bad reply', 'aria-pressed': String(reply.rating === value) });
  const drawn = reply.temperature > 0 && `drawn at temperature ${reply.temperature}`;
  const notes = [drawn, reply.forced && !concealed && 'forced', reply.stopped && 'stopped', reply.edited && 'edited'].filter(Boolean);
  return h(
    'div',
    { class: 'actions' },
    action('retry', 'Retry', () => act.retry(index, which), off),
    reply.scores?.length > 1 && !concealed && action('grid', 'All prompts', () => act.all(index, which), off),
    action('edit', 'Edit', () => act.edit(index, which), off),
    act.canRate && textOf(reply) && action('up', 'Good reply', () => act.rate(index, which, 1), rated(1)),
    act.canRate && textOf(reply) && action('down', 'Bad reply', () => act.rate(index, which, -1), rated(-1)),
    notes.length > 0 && h('span', { class: 'note' }, notes.join(' · ')),
  );
}

function voting(turn, index, concealed, act) {
  const names = turn.order.map((which, place) => (concealed ? 'AB'[place] : turn.replies[which].model));
  const button = (value, word) =>
    h('button', { type: 'button', onclick: () => act.vote(index, value), 'aria-pressed': String(turn.vote === value) }, word);
  return h(
    'div',
    { class: 'vote', role: 'group', 'aria-label': 'Which reply is better?' },
    button(turn.replies[turn.order[0]].model, `${names[0]} is better`),
    button('tie', 'Equal'),
    button(turn.replies[turn.order[1]].model, `${names[1]} is better`),
  );
}

function editor(text, label, act) {
  const field = h('textarea', { rows: 2, 'aria-label': label, maxlength: 8000 }, text);
  const form = h(
    'form',
    { class: 'turn editor', onsubmit: (event) => (event.preventDefault(), act.edited(field.value)) },
    field,
    h('div', { class: 'row' }, h('button', { class: 'primary' }, 'Done'), h('button', { type: 'button', onclick: act.cancelEdit }, 'Cancel')),
  );
  field.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') act.cancelEdit();
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}
