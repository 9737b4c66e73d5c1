"use strict";
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const drawn = new Map();
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const axes = [0, 1, 2];
  const configOf = (content) => ({
    responsive: true, displaylogo: false, scrollZoom: false,
    modeBarButtons: [["toImage", content.is3d ? "resetCameraDefault3d" : "resetScale2d"]],
  });

  const currentTheme = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");

  // Without WebGL plotly draws an empty box in three dimensions: a picture stands in for it.
  const hasWebGl = (() => {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(canvas.getContext("webgl") || canvas.getContext("webgl2"));
    } catch (error) {
      return false;
    }
  })();

  // Colours that are dark on white are light on black.
  function read(plot) {
    let text = document.getElementById(`data-${plot.dataset.figure}`).textContent;
    if (currentTheme() === "dark") {
      for (const [light, dark] of Object.entries(themes.lighter)) text = text.replaceAll(light, dark);
    }
    return JSON.parse(text);
  }

  function layoutOf(content, plot) {
    const theme = currentTheme();
    const layout = structuredClone(content.layout);
    layout.template = themes.templates[theme];
    layout.uirevision = "kept";
    layout.autosize = true;
    if (!content.is3d) layout.margin = { l: 60, r: 20, t: 46, b: 46, ...layout.margin };
    if (layout.coloraxis) layout.coloraxis.colorscale = themes.scales[theme][content.scale];
    if (content.dimensions.length) {
      ["xaxis", "yaxis", "zaxis"].forEach((name, place) => {
        layout.scene[name] = { ...layout.scene[name], title: { text: `z${axes[place] + 1}` } };
      });
    }
    if (plot.clientWidth < 480 && layout.coloraxis && content.is3d) {
      // Beside the points there is no room for a scale.
      Object.assign(layout.coloraxis.colorbar, { orientation: "h", x: 0.5, y: -0.02, yanchor: "top", len: 0.9, thickness: 10 });
      layout.coloraxis.colorbar.title = { ...layout.coloraxis.colorbar.title, side: "bottom" };
      layout.margin = { ...layout.margin, b: 60 };
    }
    return layout;
  }

  function dataOf(content) {
    return content.data.map((trace, number) => {
      const own = content.dimensions[number];
      return own ? { ...trace, x: own[axes[0]], y: own[axes[1]], z: own[axes[2]] } : { ...trace };
    });
  }

  function draw(plot) {
    if (drawn.has(plot)) return drawn.get(plot).done;
    const content = read(plot);
    if (content.is3d && !hasWebGl) {
      const picture = plot.parentElement.querySelector(".stand-in");
      const message = document.createElement("p");
      message.className = "caption no-webgl";
      message.textContent = "This browser has no WebGL: a picture stands in for the view that can be turned.";
      plot.replaceWith(message);
      if (picture) picture.hidden = false;
      drawn.set(plot, { content: null, done: Promise.resolve() });
      return Promise.resolve();
    }
    // Legends take more lines where it is narrow.
    if (!content.is3d && plot.clientWidth < 480) plot.style.height = `${Math.round(plot.clientHeight * 1.15)}px`;
    const done = Plotly.newPlot(plot, dataOf(content), layoutOf(content, plot), configOf(content));
    drawn.set(plot, { content, done });
    return done;
  }

  function redraw(only) {
    for (const [plot, { content: known }] of drawn) {
      if (!known || !only(known)) continue;
      const content = read(plot);
      Plotly.react(plot, dataOf(content), layoutOf(content, plot), configOf(content));
    }
  }

  const plots = [...document.querySelectorAll(".plot")];
  // What is not looked at is not drawn: a page with a million frames behind it opens at once.
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "400px 0px" });
  plots.forEach((plot) => observer.observe(plot));

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = currentTheme() === "dark" ? "light" : "dark";
    redraw(() => true);
  });
  prefersDark.addEventListener("change", () => redraw(() => true));
  document.querySelectorAll(".choice select").forEach((select) => select.addEventListener("change", () => {
    axes[Number(select.dataset.axis)] = Number(select.value);
    redraw((content) => content.dimensions.length > 0);
  }));

  // For tests and for printing: every figure, looked at or not.
  window.drawEverything = () => Promise.all(plots.map(draw));
  window.addEventListener("beforeprint", window.drawEverything);
})();
