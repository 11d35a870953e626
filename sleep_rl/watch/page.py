"""The live page: one HTML file whose script asks for the run's state again and again and draws it.
No external resources.

Whatever comes from a run is set as text; only `parts`, which the server has escaped, are set as
HTML. The page's Content-Security-Policy knows its one script by digest, so that nothing else on it
ever runs.
"""

from __future__ import annotations

import base64
import hashlib

from sleep_rl.report.page import STYLE

LOOK = """
header{position:relative}h1{margin-right:110px}header .full{position:absolute;right:0;top:7px;font-size:14px}a{color:#2f5d9b}
.status{font-size:16px}.status b{font-weight:600}.status i{font-style:normal;color:#7b8494;margin-left:6px}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:8px;background:#a2a9b6}
.alive .dot{background:#3d8b6b;animation:beat 2s infinite}.ok .dot{background:#3d8b6b}.quiet .dot{background:#c4661f}
.failed .dot{background:#a8331f}.failed b{color:#a8331f}@keyframes beat{50%{opacity:.35}}
@media(prefers-reduced-motion:reduce){.dot{animation:none!important}}
.bar{height:6px;border-radius:3px;background:#eef0f3;margin-top:10px;overflow:hidden}.bar span{display:block;height:100%;
width:0;background:#2f5d9b;transition:width .4s}[hidden]{display:none!important}#problem{margin-top:10px;padding:8px 12px;
background:#fbeeea;border-radius:4px}figure h3{margin:0 0 2px}figure h3 small{display:inline;margin-left:6px}
.legend{font-size:12.5px;color:#5d6675;min-height:20px;display:flex;flex-wrap:wrap;gap:0 14px}.legend i{font-style:normal;
display:inline-block;width:12px;height:3px;border-radius:2px;margin-right:5px;vertical-align:middle}
.legend b{color:#1d2330;font-weight:600;margin-left:4px}svg text{font-size:11px;fill:#7b8494}svg .night{fill:#a2a9b6}
figure svg{touch-action:pan-y}.role{margin-top:16px}.role h3{display:inline;margin:0 8px 0 0}.role>span{font-size:14px}
.role .age,.age{color:#7b8494;font-size:12.5px;white-space:nowrap;margin-left:5px}.workers{max-height:320px;overflow:auto;
margin-top:4px}.workers td,.workers th{padding:3px 12px 3px 0;vertical-align:top;font-size:13px;font-weight:400}
.workers th{white-space:nowrap;width:96px}.workers td.n{white-space:nowrap;width:92px;color:#7b8494}
.workers td.again{color:#a8331f}
.workers td.log{font:12px/1.5 ui-monospace,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere;color:#5d6675}
.gone th{color:#a2a9b6;text-decoration:line-through}ul.texts{list-style:none;margin:0;padding:0}ul.texts li{padding:5px 0;
border-bottom:1px solid #eef0f3;font-size:13.5px;overflow-wrap:anywhere;white-space:pre-wrap}
ul.texts small{margin-bottom:1px}
.facts span{display:inline-block;white-space:normal;overflow-wrap:anywhere}
@media(max-width:560px){main{padding:20px 16px 48px}h1{font-size:22px}.workers tr{display:block;padding:4px 0}
.workers th,.workers td,.workers td.n{display:inline-block;width:auto;padding:0 10px 0 0}
.workers td.log{display:block;padding:0}
.plain th,.plain td{padding-right:8px;font-size:12.5px}}
"""

SCRIPT = r"""
'use strict';
const $ = id => document.getElementById(id), shown = {}, figures = new Map();
let tag = '', skew = 0, data = null, failing = 0;
const EVERY = 1000, HEIGHT = 190, LEFT = 46, RIGHT = 20, TOP = 16, BOTTOM = 22;

function make(name, attributes, ...inside) {
  const svg = ['svg', 'path', 'line', 'text', 'circle'].includes(name);
  const made = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...inside.filter(part => part !== null && part !== undefined));
  return made;
}
function changed(id, value) {  // so that what stays the same keeps its selection and its scroll position
  const text = JSON.stringify(value);
  if (shown[id] === text) return false;
  shown[id] = text;
  return true;
}
function ago(t) {
  const s = Math.max(0, Date.now() / 1000 + skew - t);
  if (s < 1.5) return 'just then';
  if (s < 90) return Math.round(s) + ' s ago';
  if (s < 5400) return Math.round(s / 60) + ' min ago';
  return s < 129600 ? Math.round(s / 3600) + ' h ago' : Math.round(s / 86400) + ' days ago';
}
function age(t) { return t ? make('span', {'class': 'age', 'data-t': t}, ago(t)) : null; }
function tick() { for (const e of document.querySelectorAll('[data-t]')) e.textContent = ago(+e.dataset.t); }
function number(y) {
  const a = Math.abs(y);
  if (a && (a < 1e-3 || a >= 1e6)) return y.toExponential(1);
  return a >= 100 ? Math.round(y).toLocaleString('en') : String(+y.toPrecision(3));
}

function head(s) {
  document.title = s.name + ' – sleep_rl';
  $('name').textContent = s.name;
  $('facts').replaceChildren(...Object.entries(s.facts).map(([k, v]) => make('span', {}, make('i', {}, k), ' ' + v)));
  $('status').className = 'status ' + s.status;
  $('status').replaceChildren(make('span', {'class': 'dot'}), make('b', {}, s.said),
    make('i', {}, s.t ? 'last record ' : ''), age(s.t) || '');
  const p = s.phase, running = s.status === 'alive' || s.status === 'quiet';
  const of = p.steps ? ', step ' + p.step.toLocaleString('en') + ' of ' + p.steps.toLocaleString('en') : '';
  const left = p.left && running ? ', about ' + p.left + ' left' : '';
  $('phase').textContent = s.status === 'ok' ? '' : p.said ? (running ? '' : 'Last: ') + p.said + of + left : '';
  $('bar').parentElement.hidden = !(p.steps && running);
  $('bar').style.width = p.steps ? 100 * p.step / p.steps + '%' : 0;
  const notes = [];
  if (s.read < s.size) notes.push('still reading: ' + Math.floor(100 * s.read / s.size) + ' % of the record');
  if (s.left_out) notes.push(s.left_out + ' lines of the record could not be read and are left out');
  $('notes').textContent = notes.join('; ');
}

function ticks(low, high, most) {
  const raw = (high - low || 1) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw), out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(k * step);
  return out;
}
function draw(panel, figure) {
  const wide = Math.max(260, figure.clientWidth || 420), across = wide - LEFT - RIGHT, up = HEIGHT - BOTTOM - TOP;
  const all = panel.series.flatMap(s => s.points).filter(p => p[1] !== null);
  const xs = all.map(p => p[0]), ys = all.map(p => p[1]);
  let x0 = Math.min(0, ...xs), x1 = Math.max(...xs), y0 = Math.min(0, ...ys), y1 = Math.max(0, ...ys);
  if (x1 <= x0) x1 = x0 + 1;
  if (y1 <= y0) y1 = y0 + 1;
  y1 += 0.06 * (y1 - y0);
  const X = x => LEFT + across * (x - x0) / (x1 - x0), Y = y => HEIGHT - BOTTOM - up * (y - y0) / (y1 - y0);
  const svg = make('svg', {viewBox: '0 0 ' + wide + ' ' + HEIGHT, role: 'img', 'aria-label': panel.title});
  for (const y of ticks(y0, y1, 4)) svg.append(
    make('line', {x1: LEFT, x2: wide - RIGHT, y1: Y(y), y2: Y(y), stroke: Math.abs(y) < 1e-12 ? '#a2a9b6' : '#eef0f3'}),
    make('text', {x: LEFT - 6, y: Y(y) + 4, 'text-anchor': 'end'}, number(+y.toPrecision(6))));
  for (const x of ticks(x0, x1, Math.max(2, wide / 90))) svg.append(
    make('text', {x: X(x), y: HEIGHT - 7, 'text-anchor': 'middle'}, number(+x.toPrecision(6))));
  let free = -1;
  for (const [x, label] of panel.nights) {
    if (x > x1) continue;
    svg.append(make('line', {x1: X(x), x2: X(x), y1: TOP - 4, y2: HEIGHT - BOTTOM, stroke: '#dfe3e9'}));
    if (X(x) < free || X(x) + 6 * label.length > wide) continue;  // labels do not run into one another
    svg.append(make('text', {x: X(x) + 4, y: TOP - 2, 'class': 'night'}, label));
    free = X(x) + 6 * label.length + 10;
  }
  for (const s of panel.series) {
    let d = '', dots = '', pen = false;
    s.points.forEach(([x, y], i) => {
      if (y === null) { pen = false; return; }
      const at = X(x).toFixed(1) + ' ' + Y(y).toFixed(1), next = s.points[i + 1];
      const alone = panel.dots || (!pen && (!next || next[1] === null));
      if (alone) dots += 'M' + at + 'h0'; else d += (pen ? 'L' : 'M') + at;
      pen = !panel.dots;
    });
    for (const [path, thick] of [[d, 1.5], [dots, 4.5]]) svg.append(make('path', {d: path, fill: 'none', stroke: s.colour,
      'stroke-width': thick, 'stroke-linecap': 'round', 'stroke-linejoin': 'round'}));
  }
  const cross = make('line', {y1: TOP, y2: HEIGHT - BOTTOM, stroke: '#7b8494', visibility: 'hidden'});
  svg.append(cross);
  const newest = s => { for (let i = s.points.length; i--;) if (s.points[i][1] !== null) return s.points[i]; };
  const legend = make('div', {'class': 'legend'});
  const tell = (pick, at) => legend.replaceChildren(...panel.series.map(s => make('span', {},
    make('i', {style: 'background:' + s.colour}), s.label, make('b', {}, number(pick(s)[1])))), make('span', {}, at));
  const rest = () => { cross.setAttribute('visibility', 'hidden'); tell(newest, ''); };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), inside = (event.clientX - box.left) * wide / box.width - LEFT;
    const x = x0 + inside / across * (x1 - x0);
    const near = s => s.points.filter(p => p[1] !== null).reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    const at = near(panel.series[0])[0];
    cross.setAttribute('x1', X(at)); cross.setAttribute('x2', X(at)); cross.setAttribute('visibility', 'visible');
    tell(near, 'at ' + number(at));
  });
  svg.addEventListener('pointerleave', rest);
  rest();
  figure.replaceChildren(make('h3', {}, panel.title, make('small', {}, panel.unit)), legend, svg,
    make('figcaption', {}, 'over ' + panel.x + '; ' + panel.meaning));
}
function curves(s, again) {
  $('course').hidden = !s.curves.length;
  for (const panel of s.curves)
    if (!figures.has(panel.title)) figures.set(panel.title, $('curves').appendChild(make('figure', {})));
  for (const panel of s.curves) {  // when all have their places: how wide one is depends on how many there are
    figures.get(panel.title).style.order = s.curves.indexOf(panel);  // also of one that comes late
    if (changed('curve ' + panel.title, panel) || again) draw(panel, figures.get(panel.title));
  }
  const titles = s.curves.map(p => p.title);
  for (const [title, figure] of figures) if (!titles.includes(title)) {
    figure.remove(); figures.delete(title); delete shown['curve ' + title];
  }
}

const NAMES = {rollout: 'Rollouts', learner: 'Learners', reward: 'Rewards', semantic: 'Semantic reward', critic: 'Critics',
  other: 'Other models', files: 'Other logs'};
function crew(s) {
  $('workers').hidden = !s.crew.length;
  if (!changed('crew', s.crew)) return;
  const scrolled = [...document.querySelectorAll('.workers')].map(e => e.scrollTop);
  $('crew').replaceChildren(...s.crew.map(role => {
    const did = role.did.map((d, i) => make('span', {}, (i ? '; ' : '') + d.said, age(d.t)));
    if (role.restarts) did.push(make('span', {'class': 'bad'}, '; the crew was started anew ' + role.restarts + ' times'));
    if (!role.did.length && role.role !== 'files') did.push(make('span', {'class': 'none'}, 'nothing recorded yet'));
    const rows = role.workers.map(w => make('tr', w.left ? {'class': 'gone'} : {}, make('th', {}, w.name),
      make('td', {'class': w.restarts ? 'n again' : 'n'},
        w.left ? 'has left' : w.restarts ? 'restarted ' + w.restarts + ' ×' : ''),
      make('td', {'class': 'n'}, w.log && w.log.bytes ? age(w.log.t) : ''),
      make('td', {'class': 'log'}, w.log ? w.log.line || 'nothing in its log' : 'no log')));
    return make('div', {'class': 'role'}, make('h3', {}, NAMES[role.role]), ...did,
      make('div', {'class': 'workers'}, make('table', {}, make('tbody', {}, ...rows))));
  }));
  [...document.querySelectorAll('.workers')].forEach((e, i) => { e.scrollTop = scrolled[i] || 0; });
}

function texts(s) {
  $('newest').hidden = !s.written.texts.length && !s.dreams.length;
  if (changed('written', s.written)) $('written').replaceChildren(...(s.written.texts.length ? [
    make('h3', {}, 'What the teacher wrote' + (s.written.night === null ? '' : ' in night ' + s.written.night)),
    make('ul', {'class': 'texts'}, ...s.written.texts.map(t => make('li', {}, t)))] : []));
  if (changed('dreams', s.dreams)) $('dreams').replaceChildren(...(s.dreams.length ? [make('h3', {}, 'Newest dreams'),
    make('ul', {'class': 'texts'}, ...s.dreams.map(d => make('li', {}, make('small', {}, 'night ' + d.night + ', ' +
      d.task + ': ' + d.became + (d.gain === null ? '' : ', gain ' + number(d.gain))), d.text)))] : []));
}

function show(s) {
  head(s); curves(s, false); crew(s); texts(s);
  for (const [id, html] of Object.entries(s.parts)) if (changed(id, html)) $(id).innerHTML = html;
}
function problem(text) { $('problem').hidden = !text; $('problem').textContent = text; }
async function poll() {
  let soon = EVERY;
  try {
    const answer = await fetch('state.json', {cache: 'no-store', headers: tag ? {'If-None-Match': tag} : {}});
    if (answer.status === 200) {
      data = await answer.json(); tag = answer.headers.get('ETag');
      skew = data.now - Date.now() / 1000;
      show(data);
      if (data.read < data.size) soon = 50;
    } else if (answer.status !== 304) throw new Error((await answer.text()).trim());
    problem(''); failing = 0;
  } catch (error) {
    failing++;
    const gone = 'The server of this page does not answer; is sleep-rl watch still there?';
    problem(error instanceof TypeError ? gone : error.message);
  }
  tick();
  setTimeout(poll, failing ? Math.min(10000, EVERY * failing) : soon);
}
let width = innerWidth;
addEventListener('resize', () => { if (data && innerWidth !== width) { width = innerWidth; curves(data, true); } });
poll();
"""

BODY = """<main><header><h1 id="name">…</h1><a class="full" href="report">full report</a><p class="facts" id="facts"></p>
<p class="status" id="status"></p><p id="phase"></p><div class="bar" hidden><span id="bar"></span></div>
<p class="none" id="notes"></p><p class="bad" id="problem" hidden></p>
<noscript><p class="bad">This page needs JavaScript to stay up to date; the full report does not.</p></noscript></header>
<div id="retention"></div>
<section id="course" hidden><h2>Course</h2><div class="figures" id="curves"></div></section>
<section id="workers" hidden><h2>Workers</h2><p class="lead">What each kind did last, and the end of each worker's log.</p>
<div id="crew"></div></section>
<section id="newest" hidden><h2>Newest texts</h2><div class="pair"><div id="written"></div>
<div id="dreams"></div></div></section>
<div id="answers"></div><div id="failures"></div></main>"""

PAGE = (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    'content="width=device-width,initial-scale=1"><title>sleep_rl</title><link rel="icon" '
    'href="data:,">'
    f"<style>{STYLE}{LOOK}</style></head><body>{BODY}<script>{SCRIPT}</script></body></html>\n"
)

SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
