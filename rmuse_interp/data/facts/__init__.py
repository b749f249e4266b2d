"""`facts`: a text-only benchmark of public knowledge that a small pretrained model has."""
