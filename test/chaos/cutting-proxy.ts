// A wire that is cut: it passes bytes between a client and the daemon and breaks the connection after so many of them, in the
// middle of whatever they were.

import net from 'node:net';

export class CuttingProxy {
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  /** Bytes from the daemon that the next connection lets through. */
  bytesLeft = Infinity;
  cuts = 0;

  constructor(targetPort: number) {
    this.#server = net.createServer((client) => {
      const daemon = net.connect(targetPort, '127.0.0.1');
      let left = this.bytesLeft;
      for (const socket of [client, daemon]) {
        this.#sockets.add(socket);
        socket.on('error', () => undefined);
        socket.on('close', () => {
          this.#sockets.delete(socket);
          client.destroy();
          daemon.destroy();
        });
      }
      client.on('data', (data) => daemon.write(data));
      daemon.on('data', (data) => {
        if (data.length < left) {
          left -= data.length;
          client.write(data);
          return;
        }
        daemon.destroy();
        this.cuts += 1;
        client.end(data.subarray(0, left));
        left = 0;
      });
    });
  }

  /** Resolves to the port to connect to instead of the daemon's. */
  async listen(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return (this.#server.address() as net.AddressInfo).port;
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
  }
}
