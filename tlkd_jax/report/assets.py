"""The page's style sheet and script, inlined so that it needs no network."""

STYLE = """
:root{color-scheme:light dark;--bg:#fcfcfb;--card:#fff;--ink:#1c1e21;
--soft:#5c636b;--line:#d9dce0;--accent:#1f6feb;--good:#1a7f4b;--bad:#b42318;
--warn:#fff6df;--warnline:#e2b93b;--head:#f1f3f5}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){
--bg:#14171a;--card:#1b1f23;--ink:#e6e8ea;--soft:#a3abb3;--line:#343a40;
--accent:#6ea8fe;--good:#5cc98d;--bad:#ff8a7a;--warn:#2d2712;--warnline:#a98a2c;
--head:#242a30}}
:root[data-theme=dark]{color-scheme:dark;--bg:#14171a;--card:#1b1f23;
--ink:#e6e8ea;--soft:#a3abb3;--line:#343a40;--accent:#6ea8fe;--good:#5cc98d;
--bad:#ff8a7a;--warn:#2d2712;--warnline:#a98a2c;--head:#242a30}
:root[data-theme=light]{color-scheme:light}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",
sans-serif}
main,header,footer{max-width:1260px;margin:0 auto;padding:0 20px}
header{padding-top:28px;position:relative}
h1{font-size:1.65rem;line-height:1.25;margin:0 110px .3em 0}
h2{font-size:1.3rem;margin:2.6em 0 .6em;padding-top:.6em;
border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.6em 0 .4em}
p{max-width:75ch;margin:.5em 0}
a{color:var(--accent)}
.soft,figcaption,.source{color:var(--soft);font-size:.86rem}
.source{overflow-wrap:anywhere;margin:.3em 0 0}
.lead{font-size:1.12rem;background:var(--card);border:1px solid var(--line);
border-left:5px solid var(--accent);border-radius:6px;padding:14px 18px;
max-width:none}
.missing{background:var(--warn);border:1px solid var(--warnline);
border-radius:6px;padding:10px 14px;max-width:none;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 14px;margin:14px 0;font-size:.92rem}
#theme{position:absolute;right:20px;top:28px;font:inherit;font-size:.85rem;
color:var(--ink);background:var(--card);border:1px solid var(--line);
border-radius:6px;padding:5px 10px;cursor:pointer}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px;
background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.88rem;
font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}
td.wrap{white-space:normal;min-width:16ch}
tr:last-child td{border-bottom:0}
td:first-child{position:sticky;left:0;background:var(--card)}
thead th:first-child{left:0;z-index:1}
thead th{background:var(--head);position:sticky;top:0}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;
padding:0;cursor:pointer;text-align:inherit}
th button::after{content:" \\2195";color:var(--soft);font-weight:400}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);
font-weight:600}
figure{margin:1em 0}
.panels{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr))}
.panels.narrow{grid-template-columns:repeat(auto-fill,minmax(165px,1fr));
gap:8px}
.panels svg{width:100%;height:auto;display:block;max-width:440px;
margin:0 auto}
.panels.narrow svg{max-width:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;font-size:.88rem;
margin:.2em 0 .5em}
.legend svg{width:34px;height:10px;vertical-align:middle;margin-right:6px}
details{margin:.5em 0}summary{cursor:pointer;color:var(--accent);
font-size:.88rem}
.gallery{display:grid;gap:12px;
grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.gallery.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),
1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:6px;
padding:8px;font-size:.82rem;line-height:1.4;overflow-wrap:anywhere}
.card .row{display:flex;gap:6px;margin-bottom:6px}
.card figure{margin:0;flex:1;min-width:0;text-align:center}
.card img{width:100%;height:auto;border-radius:3px;display:block}
.card figcaption{font-size:.74rem}
code{font-size:.86em;overflow-wrap:anywhere}
footer{padding-top:2em;padding-bottom:3em}
@media (max-width:520px){main,header,footer{padding-left:14px;
padding-right:14px}h1{font-size:1.35rem}#theme{right:14px}
.panels.narrow{grid-template-columns:repeat(2,1fr)}th,td{padding:5px 7px}}
"""

SCRIPT = """
(function(){
var root=document.documentElement,button=document.getElementById('theme');
function dark(){var t=root.getAttribute('data-theme');return t?t==='dark':
matchMedia('(prefers-color-scheme:dark)').matches}
function name(){button.textContent=dark()?'Light':'Dark'}
button.addEventListener('click',function(){
root.setAttribute('data-theme',dark()?'light':'dark');name()});
matchMedia('(prefers-color-scheme:dark)').addEventListener('change',name);
name();
function key(row,i){var cell=row.cells[i],v=cell.getAttribute('data-value');
return v===null?cell.textContent:v===''?null:parseFloat(v)}
document.querySelectorAll('th button').forEach(function(b){
b.addEventListener('click',function(){
var th=b.parentNode,table=th.closest('table'),body=table.tBodies[0],
i=th.cellIndex,up=th.getAttribute('aria-sort')!=='ascending';
table.querySelectorAll('th').forEach(function(h){
h.removeAttribute('aria-sort')});
th.setAttribute('aria-sort',up?'ascending':'descending');
Array.from(body.rows).sort(function(r,s){var a=key(r,i),b=key(s,i);
if(a===null||b===null)return(a===null)-(b===null);
var d=typeof a==='number'&&typeof b==='number'?a-b:
String(a).localeCompare(String(b),undefined,{numeric:true});
return up?d:-d}).forEach(function(r){body.appendChild(r)})})})})();
"""
