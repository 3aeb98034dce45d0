"""An OpenAI-compatible endpoint: what a request passes, and the two servers behind it.

gate.py          limits on size, number and time of requests; a bad one gets a 4xx with a sentence
vllm_server.py   vLLM's own server with the plugin, for the contrastive family
hf_server.py     a small server over the hf engine, for every method
worker.py        the thread that feeds that engine
"""
