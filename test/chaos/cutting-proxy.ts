// A proxy that cuts connections: it hands bytes on between a client and the daemon, and breaks the connection after so many of them,
// in the middle of whatever they were.

import net from 'node:net';

export class CuttingProxy {
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  /** The number of bytes from the client that the next connection lets through. */
  bytesUpLeft = Infinity;
  /** The number of bytes from the daemon that the next connection lets through. */
  bytesLeft = Infinity;
  cuts = 0;
  /** The numbers of bytes that the newest connection has let through. */
  passed = { up: 0, down: 0 };

  constructor(targetPort: number) {
    this.#server = net.createServer((client) => {
      const daemon = net.connect(targetPort, '127.0.0.1');
      for (const socket of [client, daemon]) {
        this.#sockets.add(socket);
        socket.on('error', () => undefined);
        socket.on('close', () => {
          this.#sockets.delete(socket);
          client.destroy();
          daemon.destroy();
        });
      }
      const passed = { up: 0, down: 0 };
      this.passed = passed;
      this.#pass('up', { from: client, to: daemon, most: this.bytesUpLeft, passed });
      this.#pass('down', { from: daemon, to: client, most: this.bytesLeft, passed });
    });
  }

  #pass(
    direction: 'up' | 'down',
    {
      from,
      to,
      most,
      passed,
    }: { from: net.Socket; to: net.Socket; most: number; passed: { up: number; down: number } },
  ): void {
    from.on('data', (data) => {
      const left = most - passed[direction];
      passed[direction] += Math.min(data.length, left);
      if (data.length < left) {
        to.write(data);
        return;
      }
      from.destroy();
      this.cuts += 1;
      to.end(data.subarray(0, left));
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
