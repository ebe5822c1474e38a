// Elements of the page, made without HTML strings: nothing that anybody writes can become markup.

const PATHS = {
  undo: 'M9 7 4 12l5 5M4 12h10a6 6 0 0 1 0 12h-1',
  plus: 'M12 5v14M5 12h14',
  save: 'M12 4v11m-5-5 5 5 5-5M5 20h14',
  load: 'M12 15V4m-5 5 5-5 5 5M5 20h14',
  sliders: 'M4 8h9m5 0h2M4 16h2m5 0h9M15.500 5.500v5M8.500 13.500v5',
  close: 'M6 6l12 12M18 6 6 18',
  shuffle: 'M4 7h3c5 0 5 10 10 10h3m-3-3 3 3-3 3M4 17h3c2 0 3.200-1.600 4.200-3.500M13.500 9.200C14.400 7.900 15.500 7 17 7h3m-3-3 3 3-3 3',
  edit: 'M4 20h4L19 9l-4-4L4 16z',
  send: 'M12 20V5m-6 6 6-6 6 6',
  stop: 'M7 7h10v10H7z',
  retry: 'M20 11A8 8 0 1 0 18 17.500M20 4v7h-7',
  grid: 'M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z',
  up: 'M7 11v9H4v-9zM7 11l4-7c1.700 0 2.500 1.200 2.200 2.800L12.600 10H19a1.500 1.500 0 0 1 1.500 1.800l-1.300 6.700A1.800 1.800 0 0 1 17.400 20H7',
  down: 'M7 13V4H4v9zM7 13l4 7c1.700 0 2.500-1.200 2.200-2.800L12.600 14H19a1.500 1.500 0 0 0 1.500-1.800l-1.300-6.700A1.800 1.800 0 0 0 17.400 4H7',
  check: 'M5 13l4.500 4.500L19 7',
};

export const byId = (id) => document.getElementById(id);

// h('button', {class: 'x', onclick: f}, child, …): false, null and undefined children are left out
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name.startsWith('--')) element.style.setProperty(name, value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(svg.namespaceURI, 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}

// A small button of an icon and a word; the word is its label for screen readers, too
export function action(name, word, onclick, more = {}) {
  return h('button', { type: 'button', class: 'action', onclick, ...more }, icon(name), h('span', {}, word));
}

export function addIcons() {
  for (const element of document.querySelectorAll('[data-icon]')) {
    const word = element.textContent;
    element.replaceChildren(icon(element.dataset.icon), h('span', {}, word));
  }
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
