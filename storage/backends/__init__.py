"""What a server keeps shares in. `port` is what the service calls; `memory` and `disk` answer it."""
