// The page: what every button does, and what is drawn when something has changed.

import { dialogue, keep, messagesFor, newReply, restore, textOf } from './dialogue.js';
import { addIcons, byId, download, h } from './elements.js';
import { conversations, markdown } from './exports.js';
import { generate, isRunning, stop } from './generation.js';
import { listenForPersona, showPersona, shuffle } from './persona.js';
import * as server from './server.js';
import { showStrip } from './strip.js';
import { turnElement } from './turns.js';

const OPENINGS = ['hello ! how are you today ?', 'what do you do for a living ?', 'do you have any hobbies or pets ?'];
const view = { models: [], editing: null, running: false };
const message = byId('message');

// ---- drawing ----------------------------------------------------------------------------------------------

let waiting = false;

function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function draw() {
  view.running = isRunning();
  const box = byId('conversation');
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  const focused = focusPath(box);
  const turns = dialogue.turns.map((_, index) => turnElement(index, view, act));
  box.replaceChildren(...(turns.length ? turns : [welcome()]));
  if (atEnd) box.scrollTop = box.scrollHeight;
  refocus(box, focused);
  byId('send').hidden = view.running;
  byId('stop').hidden = !view.running;
  byId('undo').disabled = view.running || !dialogue.turns.length;
  byId('restart').disabled = view.running || !dialogue.turns.length;
  showPersona();
  showStrip(view.models, dialogue.turns.some((turn) => turn.blind && !turn.vote));
}

// Everything is drawn anew; the element with the focus keeps it by its place, unless an editor has opened
function focusPath(box) {
  let element = document.activeElement;
  if (element === box || !box.contains(element)) return null;
  const path = [];
  for (; element !== box; element = element.parentNode) path.unshift([...element.parentNode.children].indexOf(element));
  return path;
}

function refocus(box, path) {
  const field = box.querySelector('.editor textarea');
  if (field) {
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  } else if (path) path.reduce((element, place) => element?.children[place], box)?.focus();
}

function welcome() {
  const several = view.models.some((model) => model.spt_num_prompts > 1);
  return h(
    'div',
    { class: 'welcome' },
    h('h2', {}, view.models.length > 1 ? 'Two models, the same message' : 'Say hello'),
    several &&
      h(
        'p',
        {},
        `${view.models[0].spt_num_prompts} soft prompts steer one frozen LLM. For every reply a small retriever scores all of them, ` +
          'and the one with the highest score speaks. The bars under a reply show their shares; click one to hear that prompt instead.',
      ),
    dialogue.persona.length > 0 && h('p', { class: 'as' }, `The model speaks as someone who says: “${dialogue.persona.join(' ')}”`),
    h('div', { class: 'openings' }, ...OPENINGS.map((text) => h('button', { type: 'button', onclick: () => say(text) }, text))),
  );
}

function report(error) {
  byId('problem').hidden = !error;
  byId('problem').textContent = error ? error.message : '';
}

const announce = (text) => (byId('announcement').textContent = text);

// ---- the dialogue -----------------------------------------------------------------------------------------

const chosenPrompt = () => {
  const { prompt } = dialogue.settings;
  return prompt === '' || prompt === 'all' ? prompt : Number(prompt);
};
const RETRY = 0.7; // the least temperature of a retry: the likeliest words would give the same reply

async function say(text) {
  if (isRunning() || !text.trim()) return;
  report(null);
  dialogue.turns.push({ role: 'user', text: text.trim() });
  await reply();
}

async function reply() {
  const replies = view.models.map((model) => newReply(model.id));
  const blind = replies.length > 1 && dialogue.settings.blind;
  const order = replies.map((_, which) => which);
  if (blind && Math.random() < 0.5) order.reverse();
  dialogue.turns.push({ role: 'model', replies, order, blind, vote: null });
  keep();
  const box = byId('conversation');
  box.scrollTop = box.scrollHeight;
  const { temperature, candidates } = dialogue.settings;
  await run(dialogue.turns.length - 1, replies, chosenPrompt(), temperature, candidates);
}

async function run(index, replies, prompt, temperature = dialogue.settings.temperature, candidates = 0) {
  const how = (reply) => {
    const { spt_num_prompts: count } = view.models.find((model) => model.id === reply.model);
    const known = prompt >= count ? '' : prompt; // one of two models may not have this prompt
    if (!candidates) return { prompt: known, temperature };
    const n = Math.max(1, Math.min(candidates, Math.floor(16 / count))); // of each prompt; 16 replies are the most
    return { prompt: known === '' ? 'all' : known, temperature: Math.max(temperature, RETRY), n };
  };
  await generate(index, replies, how, changed);
  announce(replies.map((reply) => (reply.error ? `Error: ${reply.error}` : `Reply: ${textOf(reply)}`)).join(' '));
}

function cutAfter(index) {
  dialogue.turns.length = index + 1;
}

const act = {
  canRate: true,
  retry: (index, which) => act.again(index, which, chosenPrompt(), Math.max(dialogue.settings.temperature, RETRY)),
  all: (index, which) => act.again(index, which, 'all'),
  force: (index, which, prompt) => act.again(index, which, prompt),
  again(index, which, prompt, temperature) {
    if (isRunning()) return;
    cutAfter(index);
    const turn = dialogue.turns[index];
    turn.vote = null;
    run(index, [turn.replies[which]], prompt, temperature);
  },
  use(index, which, choice) {
    cutAfter(index);
    dialogue.turns[index].replies[which].used = choice;
    keep();
    changed();
  },
  edit(index, which) {
    view.editing = { index, which };
    changed();
  },
  cancelEdit() {
    view.editing = null;
    message.focus();
    changed();
  },
  edited(text) {
    const { index, which } = view.editing;
    view.editing = null;
    const turn = dialogue.turns[index];
    if (turn.role === 'user') {
      if (!text.trim()) return changed();
      turn.text = text.trim();
      cutAfter(index);
      reply();
    } else if (text.trim() !== textOf(turn.replies[which])) {
      cutAfter(index);
      turn.replies[which].texts[turn.replies[which].used] = text.trim();
      turn.replies[which].edited = true;
    }
    keep();
    message.focus();
    changed();
  },
  async rate(index, which, value) {
    const reply = dialogue.turns[index].replies[which];
    const rating = reply.rating === value ? null : value;
    const { model, scores, selected, edited } = reply;
    const entry = { kind: 'rating', model, rating, reply: textOf(reply), prompt: reply.prompts[reply.used], scores, selected, temperature: reply.temperature };
    await send({ ...entry, edited: Boolean(edited), messages: messagesFor(model, index), settings: dialogue.settings });
    reply.rating = rating;
    keep();
    changed();
  },
  async vote(index, value) {
    const turn = dialogue.turns[index];
    const replies = turn.replies.map((reply) => ({
      model: reply.model,
      text: textOf(reply),
      prompt: reply.prompts[reply.used],
      scores: reply.scores,
      messages: messagesFor(reply.model, index),
    }));
    await send({ kind: 'comparison', preferred: value, blind: turn.blind, shown: turn.order, replies, settings: dialogue.settings });
    turn.vote = value;
    keep();
    changed();
  },
};

async function send(rating) {
  try {
    await server.rate(rating);
    report(null);
  } catch (error) {
    report(error);
    throw error;
  }
}

function undo() {
  if (isRunning()) return;
  while (dialogue.turns.length && dialogue.turns.pop().role !== 'user');
  view.editing = null;
  report(null);
  keep();
  changed();
}

function restart() {
  if (isRunning()) return;
  dialogue.turns = [];
  view.editing = null;
  report(null);
  keep();
  changed();
  message.focus();
}

// ---- settings ---------------------------------------------------------------------------------------------

function bindRange(id, name, format) {
  const input = byId(id);
  input.value = dialogue.settings[name];
  const show = () => {
    byId(`${id}-value`).textContent = format(Number(input.value));
    byId('top-p-setting').classList.toggle('off', dialogue.settings.temperature === 0);
  };
  input.oninput = () => {
    dialogue.settings[name] = Number(input.value);
    show();
    keep();
  };
  show();
}

function bindSettings() {
  const { settings } = dialogue;
  const most = Math.max(...view.models.map((model) => model.spt_num_prompts));
  const numbers = Array.from({ length: most }, (_, k) => h('option', { value: k }, `always prompt ${k}`));
  byId('prompt').replaceChildren(
    h('option', { value: '' }, 'selected by the retriever'),
    h('option', { value: 'all' }, 'all, side by side'),
    ...numbers,
  );
  byId('prompt-setting').hidden = most < 2;
  byId('prompt').value = settings.prompt;
  byId('prompt').onchange = ({ target }) => {
    settings.prompt = target.value;
    keep();
  };
  byId('candidates').value = settings.candidates;
  byId('candidates').onchange = ({ target }) => {
    settings.candidates = Number(target.value);
    keep();
  };
  byId('max-tokens').max = Math.min(...view.models.map((model) => model.spt_most_tokens));
  settings.maxTokens ??= Math.min(...view.models.map((model) => model.spt_usual_tokens));
  bindRange('temperature', 'temperature', (value) => (value === 0 ? '0, the likeliest words' : value.toFixed(1)));
  bindRange('top-p', 'topP', (value) => value.toFixed(2));
  bindRange('max-tokens', 'maxTokens', (value) => `${value} tokens`);
  byId('blind-setting').hidden = view.models.length < 2;
  byId('blind').checked = settings.blind;
  byId('blind').onchange = ({ target }) => {
    settings.blind = target.checked;
    keep();
  };
}

// ---- the page ---------------------------------------------------------------------------------------------

function listen() {
  byId('composer').onsubmit = (event) => {
    event.preventDefault();
    if (isRunning() || !message.value.trim()) return;
    const text = message.value;
    message.value = '';
    fit();
    say(text);
  };
  const fit = () => {
    message.style.height = 'auto';
    message.style.height = `${message.scrollHeight + 2}px`;
  };
  message.oninput = fit;
  message.onkeydown = (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId('composer').requestSubmit();
    }
    if (event.key === 'ArrowUp' && !message.value && !isRunning()) {
      const last = dialogue.turns.findLastIndex((turn) => turn.role === 'user');
      if (last >= 0) act.edit(last);
      event.preventDefault();
    }
  };
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    stop();
    panel(false);
    byId('export').open = false;
  });
  byId('stop').onclick = () => {
    stop();
    message.focus();
  };
  byId('undo').onclick = undo;
  byId('restart').onclick = restart;
  byId('open-panel').onclick = () => panel(true);
  byId('close-panel').onclick = () => panel(false);
  const exported = (name, text, type) => () => {
    download(name, text(view.models), type);
    byId('export').open = false;
  };
  byId('export-json').onclick = exported('chat.jsonl', conversations, 'application/jsonl');
  byId('export-markdown').onclick = exported('chat.md', markdown, 'text/markdown');
  document.addEventListener('click', ({ target }) => {
    if (!byId('export').contains(target)) byId('export').open = false;
  });
  listenForPersona(changed, report);
}

// On a phone, the persona and the settings lie over the chat
function panel(open) {
  if (document.body.classList.contains('panel') === open) return;
  document.body.classList.toggle('panel', open);
  byId('open-panel').setAttribute('aria-expanded', String(open));
  byId(open ? 'close-panel' : 'open-panel').focus();
}

function askToken() {
  const dialog = byId('ask-token');
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      server.setToken(byId('token').value.trim());
      resolve();
    };
  });
}

async function load() {
  for (;;) {
    try {
      return (await server.models()).slice(0, 2);
    } catch (error) {
      if (error.status !== 401) throw error;
      await askToken();
    }
  }
}

async function start() {
  server.takeToken();
  addIcons();
  listen();
  const known = restore();
  try {
    view.models = await load();
    byId('about').textContent = view.models
      .map((model) => {
        const count = model.spt_num_prompts;
        return `${model.id} · ${model.spt_agent}${count > 1 ? `, ${count} prompts` : ''} · LLM ${model.spt_llm}`;
      })
      .join('   vs   ');
    document.title = `${view.models.map((model) => model.id).join(' vs ')} · spt chat`;
    const ids = view.models.map((model) => model.id).join();
    const others = dialogue.turns.some((turn) => turn.replies && turn.replies.map((reply) => reply.model).join() !== ids);
    if (others) dialogue.turns = []; // another server answers at this address now
    bindSettings();
    if (!known) await shuffle(changed);
  } catch (error) {
    report(error);
  }
  changed();
  if (matchMedia('(min-width: 900px)').matches) message.focus();
  document.body.dataset.ready = 'true';
}

start();
