// Search works in a page that is opened from a disk, where browsers refuse workers: there one is a hidden frame.
// Material looks for this name (its own shim would be loaded from a network).
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentDocument;
      inside.open();
      inside.write(
        "<!doctype html><body><script>" +
          "self.postMessage = data => parent.postMessage(data, '*');" +
          "self.importScripts = async (...urls) => { for (const url of urls) await new Promise((done, failed) => {" +
          "  const script = document.createElement('script'); script.src = url; script.onload = done;" +
          "  script.onerror = failed; document.body.append(script); }) };" +
          "</" + "script><script src=\"" + url + "\"></" + "script></body>"
      );
      inside.close();
      this.ready = new Promise(done => this.frame.addEventListener("load", done, { once: true }));
      addEventListener("message", event => {
        if (event.source !== this.frame.contentWindow) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
    }
    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data, source: window }))
      );
    }
    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
