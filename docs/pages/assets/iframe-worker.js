/* A browser starts no worker from a file. A hidden frame runs the script of one instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.waiting = [];
      document.body.append(this.frame);
      const worker = this.frame.contentWindow;
      // What the script calls as functions of a worker.
      worker.postMessage = data => this.receive(data);
      worker.importScripts = () => { throw new Error("no further script is needed for English"); };
      const script = worker.document.createElement("script");
      script.src = url;
      script.onload = () => {
        for (const data of this.waiting.splice(0)) this.send(data);
        this.waiting = null;
      };
      script.onerror = () =>
        this.dispatchEvent(new ErrorEvent("error", {message: `${url} is missing`}));
      worker.document.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.send(data);
    }

    send(data) {
      const worker = this.frame.contentWindow;
      worker.dispatchEvent(new worker.MessageEvent("message", {data}));
    }

    receive(data) {
      const event = new MessageEvent("message", {data});
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }

    terminate() {
      this.frame.remove();
    }
  };
}
