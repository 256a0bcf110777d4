"""Label pairs of segments in a browser: questions, clips, answers, server and page. `__main__.py` is the command."""
