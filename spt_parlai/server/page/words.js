// Words that a text shares with another one, for highlighting.

import { h } from './elements.js';

const WORD = /[\p{L}\p{N}'’]+/gu;
const COMMON = new Set(
  ('a about all also am an and any are as at be been but by can could did do does doing don\'t for from get go got had has have ' +
    'he her here him his how i i\'m i\'ve if in into is it it\'s its just know like lot love me my much no not of on one only or our ' +
    'out really she so some than that that\'s the their them then there they things think this to too up us very was we well were ' +
    'what when where which who why will with would yes you your').split(' '),
);

// A word without what changes between its forms: cats → cat, baking → bak, baked → bak
const stem = (word) => {
  const plain = word.toLowerCase().replace(/[’]/g, "'").replace(/'s$/, '');
  return plain.replace(/(?<=.{3})(ing|ies|ed|es|s|e|y)$/, '');
};
const isContent = (word) => word.length > 2 && !COMMON.has(word.toLowerCase());

export function stems(texts) {
  return new Set(texts.flatMap((text) => (text.match(WORD) ?? []).filter(isContent).map(stem)));
}

// The text as nodes, with the words of `shared` marked
export function marked(text, shared) {
  const nodes = [];
  let end = 0;
  for (const { 0: word, index } of text.matchAll(WORD)) {
    if (!isContent(word) || !shared.has(stem(word))) continue;
    nodes.push(text.slice(end, index), h('mark', {}, word));
    end = index + word.length;
  }
  return [...nodes, text.slice(end)];
}
