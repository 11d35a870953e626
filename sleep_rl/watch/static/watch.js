'use strict';
const $ = id => document.getElementById(id);
const EVERY = 1000, COURSE_EVERY = 5000;  // milliseconds
const shown = {};  // id -> what an element shows
let tag = '', skew = 0, data = null, failing = 0;
let drawn = '', asked = -COURSE_EVERY, loading = false;  // of the figures

function make(name, attributes, ...inside) {
  const made = document.createElement(name);
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

// The figures are drawn by the server, which does so every few seconds at most.
async function course(s) {
  $('course').hidden = !s.course;
  if (!s.course) $('curves').replaceChildren();
  if (!s.course || loading || s.course === drawn || performance.now() - asked < COURSE_EVERY) return;
  loading = true;
  asked = performance.now();
  try {
    const answer = await fetch('course', {cache: 'no-store'});
    if (answer.status === 200) {
      $('curves').innerHTML = await answer.text();
      drawn = (answer.headers.get('ETag') || '').replaceAll('"', '');
    } else $('curves').textContent = (await answer.text()).trim();
  } catch (error) {
    // no answer: the next poll of the state says so
  } finally {
    loading = false;
  }
}

const NAMES = {rollout: 'Rollouts', learner: 'Learners', reward: 'Rewards', semantic: 'Semantic reward', critic: 'Critics',
  other: 'Other models', files: 'Other logs'};
function workers(s) {
  $('workers').hidden = !s.workers.length;
  if (!changed('workers', s.workers)) return;
  const scrolled = [...document.querySelectorAll('.workers')].map(e => e.scrollTop);
  $('roles').replaceChildren(...s.workers.map(role => {
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
  head(s);
  workers(s);
  texts(s);
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
    if (data) course(data);
    problem(''); failing = 0;
  } catch (error) {
    failing++;
    const gone = 'The server of this page does not answer; is sleep-rl watch still there?';
    problem(error instanceof TypeError ? gone : error.message);
  }
  tick();
  setTimeout(poll, failing ? Math.min(10000, EVERY * failing) : soon);
}
poll();
