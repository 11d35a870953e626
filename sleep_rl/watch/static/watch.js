'use strict';
const $ = id => document.getElementById(id);
const EVERY = 1000, CURVES_EVERY = 5000;  // milliseconds
const shown = {};  // id -> what an element shows
let tag = '', skew = 0, data = null, failing = 0;
let drawn = '', asked = -CURVES_EVERY, loading = false;  // of the figures

function make(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...inside.filter(part => part !== null && part !== undefined));
  return made;
}
// An unchanged value is not set again, so that it keeps its selection and its scroll position.
function changed(id, value) {
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
function tick() {
  for (const e of document.querySelectorAll('[data-t]')) e.textContent = ago(+e.dataset.t);
}
function number(y) {
  const a = Math.abs(y);
  if (a && (a < 1e-3 || a >= 1e6)) return y.toExponential(1);
  return a >= 100 ? Math.round(y).toLocaleString('en') : String(+y.toPrecision(3));
}

function head(s) {
  document.title = s.name + ' – sleep_rl';
  $('name').textContent = s.name;
  $('facts').replaceChildren(...Object.entries(s.facts).map(
    ([name, value]) => make('span', {}, make('i', {}, name), ' ' + value)));
  $('status').className = 'status ' + s.status;
  $('status').replaceChildren(make('span', {'class': 'dot'}), make('b', {}, s.text),
    make('i', {}, s.t ? 'last record ' : ''), age(s.t) || '');
  const p = s.phase;
  const running = s.status === 'alive' || s.status === 'quiet';
  const count = n => n.toLocaleString('en');
  const of = p.steps ? ', step ' + count(p.step) + ' of ' + count(p.steps) : '';
  const left = p.left && running ? ', about ' + p.left + ' left' : '';
  const phase = p.text ? (running ? '' : 'Last: ') + p.text + of + left : '';
  $('phase').textContent = s.status === 'ok' ? '' : phase;
  $('bar').parentElement.hidden = !(p.steps && running);
  $('bar').style.width = p.steps ? 100 * p.step / p.steps + '%' : 0;
  const notes = [];
  const share = Math.floor(100 * s.read / s.size);
  if (s.read < s.size) notes.push('reading the journal: ' + share + ' %');
  if (s.left_out) notes.push(s.left_out + ' invalid lines of the journal are skipped');
  $('notes').textContent = notes.join('; ');
}

// The figures are drawn by the server, at a limited rate.
async function curves(s) {
  $('curves').hidden = !s.curves;
  if (!s.curves) $('figures').replaceChildren();
  if (!s.curves || loading || s.curves === drawn) return;
  if (performance.now() - asked < CURVES_EVERY) return;
  loading = true;
  asked = performance.now();
  try {
    const answer = await fetch('curves', {cache: 'no-store'});
    if (answer.status === 200) {
      $('figures').innerHTML = await answer.text();
      drawn = (answer.headers.get('ETag') || '').replaceAll('"', '');
    } else $('figures').textContent = (await answer.text()).trim();
  } catch (error) {
    // no answer: the next poll of the state reports it
  } finally {
    loading = false;
  }
}

const NAMES = {rollout: 'Rollouts', learner: 'Learners', reward: 'Rewards',
  semantic: 'Semantic reward', critic: 'Critics', peer: 'Peers', files: 'Other logs'};

function workers(s) {
  $('workers').hidden = !s.workers.length;
  if (!changed('workers', s.workers)) return;
  const scrolled = [...document.querySelectorAll('.workers')].map(e => e.scrollTop);
  $('roles').replaceChildren(...s.workers.map(role));
  [...document.querySelectorAll('.workers')].forEach((e, i) => { e.scrollTop = scrolled[i] || 0; });
}
function role(r) {
  const activities = r.activities.map(
    (a, i) => make('span', {}, (i ? '; ' : '') + a.text, age(a.t)));
  if (r.restarts) {
    const text = '; all workers were restarted ' + r.restarts + ' times';
    activities.push(make('span', {'class': 'bad'}, text));
  }
  if (!r.activities.length && r.role !== 'files') {
    activities.push(make('span', {'class': 'none'}, 'no record yet'));
  }
  const table = make('table', {}, make('tbody', {}, ...r.workers.map(worker)));
  return make('div', {'class': 'role'}, make('h3', {}, NAMES[r.role]), ...activities,
    make('div', {'class': 'workers'}, table));
}
function worker(w) {
  let state = w.restarts ? 'restarted ' + w.restarts + ' ×' : '';
  if (w.left) state = 'left';
  return make('tr', w.left ? {'class': 'gone'} : {},
    make('th', {}, w.name),
    make('td', {'class': w.restarts ? 'n again' : 'n'}, state),
    make('td', {'class': 'n'}, w.log && w.log.bytes ? age(w.log.t) : ''),
    make('td', {'class': 'log'}, w.log ? w.log.line || 'empty log' : 'no log'));
}

function texts(s) {
  $('newest').hidden = !s.written.texts.length && !s.dreams.length;
  if (changed('written', s.written)) {
    const night = s.written.night === null ? '' : ' in night ' + s.written.night;
    list('written', 'Teacher sequences' + night, s.written.texts.map(t => make('li', {}, t)));
  }
  if (changed('dreams', s.dreams)) list('dreams', 'Newest dreams', s.dreams.map(dream));
}
function list(id, title, items) {
  const parts = [make('h3', {}, title), make('ul', {'class': 'texts'}, ...items)];
  $(id).replaceChildren(...(items.length ? parts : []));
}
function dream(d) {
  const gain = d.gain === null ? '' : ', gain ' + number(d.gain);
  const about = 'night ' + d.night + ', ' + d.task + ': ' + d.outcome + gain;
  return make('li', {}, make('small', {}, about), d.text);
}

function show(s) {
  head(s);
  workers(s);
  texts(s);
  for (const [id, html] of Object.entries(s.parts)) {
    if (changed(id, html)) $(id).innerHTML = html;
  }
}
function problem(text) {
  $('problem').hidden = !text;
  $('problem').textContent = text;
}
async function poll() {
  let soon = EVERY;
  try {
    const headers = tag ? {'If-None-Match': tag} : {};
    const answer = await fetch('state.json', {cache: 'no-store', headers});
    if (answer.status === 200) {
      data = await answer.json();
      tag = answer.headers.get('ETag');
      skew = data.now - Date.now() / 1000;
      show(data);
      if (data.read < data.size) soon = 50;
    } else if (answer.status !== 304) throw new Error((await answer.text()).trim());
    if (data) curves(data);
    problem('');
    failing = 0;
  } catch (error) {
    failing++;
    const gone = 'The server of this page does not answer; is sleep-rl watch still running?';
    problem(error instanceof TypeError ? gone : error.message);
  }
  tick();
  setTimeout(poll, failing ? Math.min(10000, EVERY * failing) : soon);
}
poll();
