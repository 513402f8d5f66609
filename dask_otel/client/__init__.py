"""What runs in clients: their submissions carry the context of whoever submits."""
