// The gallery's filters, and its keys. Without a script the whole gallery is there.
const gallery = document.querySelector(".gallery");
const figures = [...gallery.children];
const [byClass, byKind] = document.querySelectorAll(".filters select");
const count = document.querySelector(".filters output");

const visible = () => figures.filter((figure) => !figure.hidden);

function filter() {
  for (const figure of figures) {
    const of = (name) => JSON.parse(figure.dataset[name]);
    figure.hidden =
      (byClass.value !== "" && !of("classes").includes(byClass.value)) ||
      (byKind.value !== "" && !of("kinds").includes(byKind.value));
  }
  count.textContent = `${visible().length} of ${figures.length} images`;
}

function move(event) {
  const shown = visible();
  const place = shown.indexOf(document.activeElement);
  const across = shown.filter((one) => one.offsetTop === shown[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  const target = { Home: 0, End: shown.length - 1 }[event.key] ?? place + step;
  if (place < 0 || !(target in shown)) return;
  event.preventDefault();
  shown[target].focus();
}

function follow() {
  const [key, name] = decodeURIComponent(location.hash.slice(1)).split(/=(.*)/s);
  if (key !== "class") return;
  byClass.value = name;
  filter();
  document.querySelector("#gallery").scrollIntoView();
}

document.querySelector(".filters").hidden = false;
byClass.addEventListener("change", filter);
byKind.addEventListener("change", filter);
gallery.addEventListener("keydown", move);
addEventListener("hashchange", follow);
filter();
follow();
