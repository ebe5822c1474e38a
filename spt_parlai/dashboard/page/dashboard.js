'use strict';

// The page shows what `runs.py` reads. `runs` changes while a run trains; `replies` are those of its world logs.
const byId = id => document.getElementById(id);
let { live, runs, replies } = JSON.parse(byId('data').textContent);
const hidden = new Set();
const charts = {};
let shownReplies = 12;

const RUN_COLOURS = ['#2f6bd8', '#d9622b', '#2a9d6f', '#a24bc4', '#c03a5b', '#8a7a1f', '#4aa3c7', '#7a6a5d'];
const PROMPT_COLOURS = ['#4269d0', '#efb118', '#ff725c', '#3ca951', '#a463f2', '#6cc5b0', '#ff8ab7', '#9c6b4e', '#97bbf5', '#9498a0'];
const runColour = i => RUN_COLOURS[i % RUN_COLOURS.length];
const promptColour = k => PROMPT_COLOURS[k % PROMPT_COLOURS.length];
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const SMALL = [
  ['spt_loss', 'objective', 'eq. 6'], ['nll', 'NLL, summed over prompts', 'eq. 2'], ['selection', 'selection', 'eq. 3'],
  ['contrastive', 'contrast', 'eq. 4'], ['fusion', 'fusion', 'eq. 5'],
  ['gnorm', 'gradient norm', ''], ['lr', 'learning rate', ''], ['exps', 'examples per second', ''],
];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'style') made.style.cssText = value;
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const number = value => value === undefined || value === null ? '–'
  : Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001) ? value.toExponential(2) : String(+value.toPrecision(4));

function duration(seconds) {
  const units = [[1, 's'], [60, 'min'], [3600, 'h'], [86400, 'd']];
  const small = Math.max(0, units.findLastIndex(([size]) => seconds >= size) - 1);  // the last unit that is shown
  const left = Math.round(seconds / units[small][0]) * units[small][0];
  const shown = units.slice(small, small + 2).reverse().map(([size, name], i, two) => [Math.floor((i && two.length > 1 ? left % two[0][0] : left) / size), name]);
  return shown.filter(([count], i) => count || i).map(part => part.join(' ')).join(' ');
}

// ---- runs ------------------------------------------------------------------------------------------------------

const last = list => list[list.length - 1];
const chosen = () => runs[+byId('run').value] || runs[0];
const prompts = run => Object.keys(last(run.valid) || last(run.train) || {}).filter(name => /^prompt_usage_\d+$/.test(name)).length;
const collapses = (run, fold) => prompts(run) < 2 ? [] : run[fold].filter(report => report.prompt_usage_entropy === 0);

function isCollapsed(run) {
  const report = last(run.valid) || last(run.train);
  return prompts(run) > 1 && report.prompt_usage_entropy === 0;
}

function progress(run) {
  const now = last(run.train) || last(run.valid) || {};
  const parts = [[now.train_steps, run.options.max_train_steps], [now.total_epochs, run.options.num_epochs], [now.train_time, run.options.max_train_time]];
  return run.finished ? 1 : Math.min(1, Math.max(0, ...parts.map(([done, all]) => all > 0 && done ? done / all : 0)));
}

function state(run) {
  const now = last(run.train) || last(run.valid);
  if (!now) return repliesOf(run).length ? 'not trained' : 'no report yet';
  const step = `step ${now.train_steps}${run.options.max_train_steps > 0 ? ` of ${run.options.max_train_steps}` : ''}`;
  if (run.finished) return `finished after ${last(run.valid)?.train_steps ?? now.train_steps} steps, ${duration(now.train_time)}`;
  const silent = Date.now() / 1000 - run.updated;
  const left = run.time_left === null || run.time_left === undefined ? '' : `, ${duration(Math.max(0, run.time_left))} left`;
  return silent > 900 ? `${step}, silent for ${duration(silent)}` : step + left;
}

function drawRuns() {
  byId('runs').replaceChildren(...runs.map((run, i) => {
    const card = element('button', { class: 'run', type: 'button', 'aria-pressed': String(!hidden.has(run.name)), style: `--run:${runColour(i)}` },
      element('b', {}, run.title),
      element('span', { class: 'big' }, number(run.best?.value ?? last(run.train)?.ppl)),
      element('span', { class: 'is' }, run.best ? `best ${run.best.metric} in validation, step ${run.best.train_steps}` : run.train.length ? 'ppl in training, no validation' : ''),
      element('span', { class: 'is' }, state(run)));
    if (isCollapsed(run)) card.append(element('span', { class: 'badge' }, 'retriever collapsed'));
    card.append(element('span', { class: 'progress' }, element('i', { style: `width:${100 * progress(run)}%` })));
    card.onclick = () => {
      hidden.has(run.name) ? hidden.delete(run.name) : hidden.add(run.name);
      draw();
      byId('runs').children[i].focus();
    };
    return card;
  }));
  byId('state').textContent = live ? `live, last change ${new Date(1000 * Math.max(...runs.map(run => run.updated))).toLocaleTimeString()}`
    : `${runs.length} run${runs.length > 1 ? 's' : ''}, as of ${new Date(1000 * Math.max(...runs.map(run => run.updated))).toLocaleString()}`;
}

// ---- charts ----------------------------------------------------------------------------------------------------

function plot(id, label, option) {
  const place = byId(id);
  if (!charts[id]) {
    charts[id] = echarts.init(place);
    new ResizeObserver(() => charts[id].resize()).observe(place);
  }
  place.setAttribute('role', 'img');
  place.setAttribute('aria-label', label);
  const text = { color: colour('--soft') }, line = { lineStyle: { color: colour('--line') } };
  const axis = { axisLabel: text, nameTextStyle: text, axisLine: line, splitLine: line, axisTick: { show: false } };
  charts[id].setOption({
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 8, right: 22, top: 22, bottom: 4, containLabel: true },
    ...option,
    tooltip: {
      trigger: 'axis', confine: true, backgroundColor: colour('--card'), borderColor: colour('--line'),
      textStyle: { color: colour('--ink'), fontSize: 12 }, valueFormatter: number, ...option.tooltip,
    },
    xAxis: { ...axis, type: 'value', min: 0, max: 'dataMax', minInterval: 1, ...option.xAxis, axisLabel: { ...text, hideOverlap: true }, splitLine: { show: false } },
    yAxis: { ...axis, type: 'value', scale: true, splitNumber: 4, ...option.yAxis, axisLabel: { ...text, formatter: number, ...option.yAxis?.axisLabel } },
  }, { replaceMerge: ['series'] });
}

const stepTitle = { axisPointer: { label: { formatter: ({ value }) => `step ${Math.round(value)}` }, snap: true } };
const points = (run, fold, metric) => run[fold].filter(report => metric in report).map(report => [report.train_steps, report[metric]]);

function curves(metric, folds = ['train', 'valid'], style = {}) {
  return runs.flatMap((run, i) => hidden.has(run.name) ? [] : folds.map(fold => ({
    name: `${run.title}, ${fold === 'train' ? 'training' : 'validation'}`,
    type: 'line', data: points(run, fold, metric), color: runColour(i),
    symbol: fold === 'train' ? 'none' : 'circle', symbolSize: 6,
    lineStyle: { width: fold === 'train' ? 1.2 : 2.2, opacity: fold === 'train' ? 0.55 : 1, ...style },
    ...(metric === run.best?.metric && fold === 'valid' ? { markPoint: {
      symbol: 'pin', symbolSize: 50, itemStyle: { color: runColour(i) }, label: { color: '#fff', fontSize: 9, formatter: () => number(run.best.value) },
      data: [{ coord: [run.best.train_steps, run.best.value] }] } } : {}),
  })));
}

function drawCurves() {
  const series = curves('ppl');
  const values = series.flatMap(one => one.data.map(point => point[1]));
  const wide = Math.max(...values) > 10 * Math.min(...values);
  plot('ppl', 'Perplexity by training step, of training and validation', { series, xAxis: stepTitle, yAxis: { type: wide ? 'log' : 'value' } });
  const fold = runs.some(run => run.valid.some(report => 'best_gain' in report)) ? 'valid' : 'train';
  byId('selection').hidden = runs.every(run => prompts(run) < 2);
  plot('gain', 'Gain of the selected and of the best prompt by training step', {
    series: [...curves('selected_gain', [fold]), ...curves('best_gain', [fold], { type: 'dotted' }).map(one => ({ ...one, name: `${one.name}, best`, symbolSize: 4 }))],
    xAxis: stepTitle });
  plot('entropy', 'Entropy of prompt use by training step', { series: curves('prompt_usage_entropy'), xAxis: stepTitle, yAxis: { min: 0, max: 1, interval: 0.25 } });
  const present = SMALL.filter(([metric]) => runs.some(run => run.train.some(report => metric in report)));
  const place = byId('losses');
  if (place.children.length !== present.length) {
    place.replaceChildren(...present.map(([metric, title, equation]) => element('div', {},
      element('h3', {}, `${title} `, element('small', {}, equation)), element('div', { class: 'chart', id: `loss-${metric}` }))));
  }
  for (const [metric, title] of present) plot(`loss-${metric}`, `${title} by training step`, { series: curves(metric), xAxis: stepTitle, grid: { left: 4, right: 12, top: 8, bottom: 2, containLabel: true }, yAxis: { splitNumber: 3 } });
}

const share = value => `${Math.round(100 * value)}%`;
const shareAxis = { min: 0, max: 1, interval: 0.25, axisLabel: { formatter: share } };

function drawUse() {
  const run = chosen(), K = prompts(run), fold = byId('fold').value, reports = run[fold].filter(report => 'prompt_usage_0' in report);
  byId('collapsed').hidden = !isCollapsed(run);
  const series = [...Array(K).keys()].map(k => ({
    name: `prompt ${k}`, type: 'line', stack: 'use', color: promptColour(k), symbol: 'none', lineStyle: { width: 0 }, areaStyle: { opacity: 0.85 },
    data: reports.map(report => [report.train_steps, report[`prompt_usage_${k}`]]),
  }));
  const red = collapses(run, fold);
  if (K && red.length) series.push({ name: 'collapsed', type: 'scatter', symbol: 'diamond', symbolSize: 11, color: '#e5302a', data: red.map(report => [report.train_steps, 1]), itemStyle: { borderColor: '#fff', borderWidth: 1 }, z: 9, tooltip: { valueFormatter: () => 'one prompt only' } });
  plot('use', 'Share of contexts that select each prompt, by training step', { series, legend: legend(K), grid: { left: 8, right: 22, top: 34, bottom: 4, containLabel: true }, tooltip: { valueFormatter: share }, xAxis: stepTitle, yAxis: shareAxis });
}

const legend = K => ({ type: 'scroll', top: 0, icon: 'roundRect', itemWidth: 12, itemHeight: 9, textStyle: { color: colour('--soft') }, pageTextStyle: { color: colour('--soft') }, data: [...Array(K).keys()].map(k => `prompt ${k}`) });

function repliesOf(run) { return replies[run.name] || []; }

function drawTurns() {
  const run = chosen(), rows = repliesOf(run).filter(row => row.prompt !== null && row.log === byId('log').value), K = prompts(run);
  const modelFile = run.path;
  byId('turns').hidden = !rows.length;
  byId('turns-note').textContent = rows.length ? `Share of the replies in ${rows[0].log}, by turn of the dialogue.`
    : `An evaluation with a world log beside the model file fills this chart: parlai eval_model -mf ${modelFile} --world-logs ${modelFile}.jsonl`;
  if (!rows.length) return;
  const turns = [...new Set(rows.map(row => row.number))].sort((a, b) => a - b);
  const total = Object.fromEntries(turns.map(turn => [turn, rows.filter(row => row.number === turn).length]));
  plot('turns', 'Share of replies after each prompt, by turn of the dialogue', {
    series: [...Array(K).keys()].map(k => ({ name: `prompt ${k}`, type: 'bar', stack: 'turn', color: promptColour(k), barCategoryGap: '22%',
      data: turns.map(turn => rows.filter(row => row.number === turn && row.prompt === k).length / total[turn]) })),
    legend: legend(K), grid: { left: 8, right: 12, top: 34, bottom: 4, containLabel: true }, tooltip: { valueFormatter: share },
    xAxis: { type: 'category', data: turns.map(turn => `turn ${turn}`), min: null, max: null }, yAxis: shareAxis });
}

// ---- texts -----------------------------------------------------------------------------------------------------

function shares(scores) {
  const sum = scores.reduce((a, b) => a + b, 0);
  return scores.map(score => sum > 0 ? score / sum : 1 / scores.length);
}

function drawSame() {
  const run = chosen(), all = run.replies, slider = byId('validation');
  byId('same-choice').hidden = byId('same').hidden = !all.length;
  byId('same-note').textContent = all.length
    ? "What each prompt replies at each validation. The bar is its share of the retriever's scores; the selected prompt has a frame."
    : 'parlai train_model … --log-replies 4 writes what every prompt replies to four fixed contexts at each validation.';
  if (!all.length) return;
  if (slider.max !== String(all.length - 1)) {
    const followed = slider.value === slider.max || slider.dataset.run !== run.name;
    slider.max = all.length - 1;
    if (followed) slider.value = all.length - 1;
  }
  slider.dataset.run = run.name;
  const { train_steps, contexts } = all[+slider.value];
  byId('validation-step').textContent = `step ${train_steps}`;
  byId('same').replaceChildren(...contexts.map(context => element('div', { class: 'context' },
    element('p', { class: 'persona' }, context.persona.join(' ') || 'no persona'),
    ...context.dialogue.map((text, i) => element('p', { class: i % 2 ? 'said own' : 'said' }, element('i', {}, i % 2 ? 'agent' : 'partner'), text || '(the agent begins)')),
    element('div', { class: 'answers' },
      ...context.replies.map((text, k) => {
        const part = shares(context.scores)[k], selected = k === context.selected;
        return element('div', { class: selected ? 'answer selected' : 'answer', style: `--prompt:${promptColour(k)}` },
          element('span', { class: 'who' }, `prompt ${k}, ${share(part)}${selected ? ', selected' : ''}`),
          element('span', { class: 'share' }, element('i', { style: `width:${100 * part}%` })), text || '(nothing)');
      }),
      element('div', { class: 'answer gold' }, element('span', { class: 'who' }, 'gold reply'), element('br'), context.label || '(none)')))));
}

function options(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => element('option', { value }, text)));
  if (entries.some(([value]) => String(value) === before)) select.value = before;
}

function highlighted(text, query) {
  const at = query ? text.toLowerCase().indexOf(query) : -1;
  return at < 0 ? [text] : [text.slice(0, at), element('mark', {}, text.slice(at, at + query.length)), text.slice(at + query.length)];
}

function drawReplies() {
  const run = chosen(), all = repliesOf(run), query = byId('search').value.trim().toLowerCase();
  byId('filters').hidden = byId('table').hidden = !all.length;
  byId('replies-note').textContent = all.length ? '' : `A world log beside the model file fills this table: parlai eval_model -mf ${run.path} --world-logs ${run.path}.jsonl`;
  const { prompt, turn, persona, log } = Object.fromEntries(['prompt', 'turn', 'persona', 'log'].map(id => [id, byId(id).value]));
  const rows = all.filter(row => row.log === log && (prompt === '' || row.prompt === +prompt) && (turn === '' || row.number === +turn) && (persona === '' || row.persona.join(' ') === persona)
    && (!query || [row.said, row.reply, row.label, ...row.persona].some(text => text.toLowerCase().includes(query))));
  byId('count').textContent = `${rows.length} of ${all.filter(row => row.log === log).length}`;
  byId('table').replaceChildren(...rows.slice(0, shownReplies).map(row => element('div', { class: 'reply' },
    element('div', { class: 'tag', style: `--prompt:${promptColour(row.prompt ?? 0)}` },
      ...(row.prompt === null ? [] : [element('span', { class: 'dot' }), element('b', {}, `prompt ${row.prompt}`), element('br')]), `dialogue ${row.dialogue}, turn ${row.number}`),
    element('div', {}, element('span', { class: 'tag' }, 'message'), element('br'), ...highlighted(row.said || '(the agent begins)', query)),
    element('div', {}, element('span', { class: 'tag' }, 'reply'), element('br'), ...highlighted(row.reply || '(nothing)', query), element('br'),
      element('span', { class: 'tag' }, 'gold: ', ...highlighted(row.label, query))),
    element('p', { class: 'persona' }, ...highlighted(row.persona.join(' '), query)))));
  byId('more').hidden = rows.length <= shownReplies;
}

function drawOptions() {
  const names = [...new Set(runs.flatMap(run => Object.keys(run.options)))].sort();
  const written = (run, name) => name in run.options ? JSON.stringify(run.options[name]) : '–';
  const differ = names.filter(name => new Set(runs.map(run => written(run, name))).size > 1);
  const rows = runs.length > 1 ? differ : names;
  byId('options-note').textContent = runs.length > 1 ? `The ${differ.length} options in which the runs differ; the other ${names.length - differ.length} are equal.` : '';
  byId('options').replaceChildren(element('table', {},
    element('tr', {}, element('th', { scope: 'col' }, 'option'), ...runs.map(run => element('th', { scope: 'col' }, run.title))),
    ...rows.map(name => element('tr', {}, element('th', { scope: 'row' }, `--${name.replaceAll('_', '-')}`), ...runs.map(run => element('td', {}, written(run, name)))))));
}

// ---- the whole page --------------------------------------------------------------------------------------------

function drawRun() {
  const run = chosen(), all = repliesOf(run);
  options(byId('log'), [...new Set(all.map(row => row.log))].map(log => [log, log]));
  options(byId('prompt'), [['', 'all prompts'], ...[...Array(prompts(run)).keys()].map(k => [k, `prompt ${k}`])]);
  options(byId('turn'), [['', 'all turns'], ...[...new Set(all.map(row => row.number))].sort((a, b) => a - b).map(turn => [turn, `turn ${turn}`])]);
  options(byId('persona'), [['', 'all personas'], ...[...new Set(all.map(row => row.persona.join(' ')))].filter(Boolean).sort().map(persona => [persona, persona])]);
  byId('prompt-use').hidden = prompts(run) < 2;
  if (!run[byId('fold').value].some(report => 'prompt_usage_0' in report)) byId('fold').value = run.train.some(report => 'prompt_usage_0' in report) ? 'train' : 'valid';
  drawUse();
  drawTurns();
  drawSame();
  drawReplies();
}

function draw() {
  options(byId('run'), runs.map((run, i) => [i, run.title]));
  byId('one-run').hidden = runs.length < 2;
  drawRuns();
  drawCurves();
  drawRun();
  drawOptions();
}

byId('run').onchange = byId('log').onchange = drawRun;
byId('fold').onchange = drawUse;
byId('validation').oninput = drawSame;
byId('search').oninput = byId('prompt').onchange = byId('turn').onchange = byId('persona').onchange = () => { shownReplies = 12; drawReplies(); };
byId('more').onclick = () => { shownReplies += 200; drawReplies(); };
matchMedia('(prefers-color-scheme: dark)').onchange = draw;
function follow() {  // #NAME leads to a run
  const at = runs.findIndex(run => run.name === decodeURIComponent(location.hash.slice(1)));
  if (at < 0) return;
  byId('run').value = at;
  drawRun();
  byId('one-run').scrollIntoView();
}

options(byId('run'), runs.map((run, i) => [i, run.title]));
byId('run').value = Math.max(0, runs.findIndex(run => prompts(run) > 1));
draw();
follow();
onhashchange = follow;

if (live) {
  setInterval(async () => {
    try {
      const answer = await fetch('runs.json', { cache: 'no-cache' });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (text !== live) {
        live = text;
        runs = JSON.parse(text);
        draw();
      }
    } catch { byId('state').textContent = 'the dashboard has been stopped'; }
  }, 2000);
}
