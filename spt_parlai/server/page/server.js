// What the page asks of the server: OpenAI's protocol, the personas to shuffle, and where ratings go.

const TOKEN = 'spt-token';

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The address may bring the token (#token=…), which then leaves it
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (!given) return;
  setToken(given);
  history.replaceState(null, '', location.pathname);
}

export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

async function ask(path, body, signal) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}` };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let answer;
  try {
    answer = await fetch(path, { method: body === undefined ? 'GET' : 'POST', headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The server does not answer. Is it still running?', 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new ServerError(told?.error?.message ?? `The server answers ${answer.status}.`, answer.status);
}

export const models = async () => (await (await ask('/v1/models')).json()).data;
export const personas = async () => (await ask('/personas')).json();
export const rate = (rating) => ask('/ratings', rating);

// Ask for replies, and yield the chunks of the answer as they arrive
export async function* stream(request, signal) {
  const answer = await ask('/v1/chat/completions', { ...request, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError('The connection to the server broke off.', 0);
    const lines = (waiting + value).split('\n');
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: ')) continue;
      if (line === 'data: [DONE]') return;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
      yield chunk;
    }
  }
}
