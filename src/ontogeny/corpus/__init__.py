"""Real text → tokenizer → fixed blocks of token ids, split into pretrain, train and held-out."""
