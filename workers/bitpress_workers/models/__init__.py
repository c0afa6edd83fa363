"""Which module is a block, which input feeds which linears; checkpoints read tensor by tensor."""
