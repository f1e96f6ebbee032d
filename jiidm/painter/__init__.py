"""The painter: a page on which a drawing becomes a landscape while it is drawn, and the server of that page.

`server` answers requests and never imports Jittor. `jobs` queues them for the one process that does, `worker`, which
runs an `engine`. The page itself is in `page/`: plain modules of JavaScript, without a build step.
"""
