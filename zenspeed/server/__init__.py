"""The parameter server: weights and optimizer state live on servers, workers take shares of an update, compute and push.

    worker   take ─► share (clock, number) + weights if newer ─► gradients of that share ─► push ─► take …
    server   all shares of clock c are there ─► summed in their order ─► clip, optimizer ─► version c + 1

An update (its clock is its number) is cut into shares, and a share is the same samples whoever computes it. So it does not
matter which worker takes which, when one comes, leaves or crashes: a share that is not brought back is given out again, and
the sum is the same. How far workers may run ahead of the servers is all that the kinds of consistency differ in.

    wire.py      frames, their limits, and the proof of the shared key      compress.py  fp16, int8, error feedback
    messages.py  what may stand in a frame's head                          keys.py      which server holds which parameters
    clocks.py    which shares are free, out, done                          store.py     weights, optimizer, updates
    journal.py   what was acknowledged, on disk                            serve.py     the server's connections
    crew.py      who is connected                                          answers.py   what is answered to a frame
    updates.py   shares in, updates made                                   client.py    a worker's connections
    replica.py   a worker's copy of the weights                            streaming.py fragments that travel meanwhile
    worker.py    the loop of a worker                                      run.py       the door to training
"""
