"""The bus's protocol in a world of its own: real state machines, modelled Redis, network and model, one seed each."""
