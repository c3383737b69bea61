"""serve: models behind OpenAI's HTTP API, and the web page; every request passes the guard."""
