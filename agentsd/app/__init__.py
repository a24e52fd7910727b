"""A page in the browser: stock beside agentsd, with one slider from off to fast (needs gradio: the extra `app`)."""

from agentsd.app.starting import launch as launch
