// The card of the model's persona: shown with marked words, edited, drawn, loaded and saved.

import { dialogue, keep, textOf } from './dialogue.js';
import { byId, download, h } from './elements.js';
import { personas } from './server.js';
import { marked, stems } from './words.js';

let drawn = null; // the server's personas, once they are asked for

const sentences = (text) =>
  text
    .split('\n')
    .map((line) => line.replace(/^\s*your persona:/, '').trim())
    .filter(Boolean);

export function showPersona() {
  const said = stems(dialogue.turns.flatMap((turn) => turn.replies ?? []).map(textOf));
  const lines = dialogue.persona.map((sentence) => h('li', {}, ...marked(sentence, said)));
  byId('persona').replaceChildren(...(lines.length ? lines : [h('li', { class: 'none' }, 'no persona')]));
}

function setPersona(lines, changed) {
  dialogue.persona = lines;
  keep();
  changed();
}

function edit(open) {
  byId('persona-form').hidden = !open;
  byId('persona').hidden = byId('persona-actions').hidden = open;
  if (open) {
    byId('persona-text').value = dialogue.persona.join('\n');
    byId('persona-text').focus();
  } else byId('persona-edit').focus();
}

export async function shuffle(changed) {
  drawn ??= await personas();
  const others = drawn.filter((persona) => persona.join() !== dialogue.persona.join());
  if (others.length) setPersona(others[Math.floor(Math.random() * others.length)], changed);
}

export function listenForPersona(changed, report) {
  byId('persona-edit').onclick = () => edit(true);
  byId('persona-cancel').onclick = () => edit(false);
  byId('persona-form').onsubmit = (event) => {
    event.preventDefault();
    setPersona(sentences(byId('persona-text').value), changed);
    edit(false);
  };
  byId('persona-shuffle').onclick = () => shuffle(changed).catch(report);
  byId('persona-save').onclick = () => download('persona.txt', dialogue.persona.map((line) => line + '\n').join(''), 'text/plain');
  byId('persona-load').onclick = () => byId('persona-file').click();
  byId('persona-file').onchange = async ({ target }) => {
    const [file] = target.files;
    if (file && file.size < 100_000) setPersona(sentences(await file.text()), changed);
    else if (file) report(new Error(`${file.name} is too large for a persona.`));
    target.value = '';
  };
}
