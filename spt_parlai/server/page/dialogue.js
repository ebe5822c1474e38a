// The dialogue of this tab. It is kept in the tab's own storage, so a reload keeps it and no other tab sees it.
//
// turns: {role: 'user', text} and {role: 'model', replies, order, vote, blind}, with a reply for each model:
// {model, texts, prompts, used, scores, selected, forced, running, stopped, error, edited, rating, temperature, ranking}.
// `texts` has one text, or one for each prompt; `used` is the number of the one that the dialogue goes on with.

const KEY = 'spt-dialogue';

export const dialogue = {
  persona: [],
  settings: { prompt: '', candidates: 0, temperature: 0, topP: 0.9, maxTokens: null, blind: true },
  turns: [],
};

export function keep() {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(dialogue));
  } catch {
    // full or switched off: the chat goes on without it
  }
}

export function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEY) ?? 'null');
  if (!kept) return false;
  Object.assign(dialogue, kept);
  for (const reply of dialogue.turns.flatMap((turn) => turn.replies ?? [])) {
    if (reply.running) Object.assign(reply, { running: false, stopped: true });
  }
  keep();
  return true;
}

export const textOf = (reply) => reply.texts[reply.used] ?? '';

// What a model is told before it replies in turn number `end`: its own replies, not those of the other model
export function messagesFor(model, end) {
  const messages = dialogue.persona.length ? [{ role: 'system', content: dialogue.persona.join('\n') }] : [];
  for (const turn of dialogue.turns.slice(0, end)) {
    if (turn.role === 'user') messages.push({ role: 'user', content: turn.text });
    else {
      const own = turn.replies.find((reply) => reply.model === model);
      if (own && textOf(own)) messages.push({ role: 'assistant', content: textOf(own) });
    }
  }
  return messages;
}

export function newReply(model) {
  return { model, texts: [''], prompts: [null], used: 0, scores: null, selected: null, forced: false, running: true };
}

// Every prompt's part of the sum of the scores
export function shares(scores) {
  const sum = scores.reduce((total, score) => total + score, 0);
  return scores.map((score) => (sum > 0 ? score / sum : 1 / scores.length));
}
