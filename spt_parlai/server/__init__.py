"""A trained model behind HTTP: the chat page (`spt chat`) and the OpenAI protocol (`spt serve`).

Data flows one way: `app` takes a request, `protocol` reads it, `engine` decodes it in a batch with others, and what it
finds goes back token by token. Nothing is kept between two requests: each brings its whole dialogue.
"""

import parlai  # noqa: F401  this installs the hooks, before a file of this room imports more of ParlAI
