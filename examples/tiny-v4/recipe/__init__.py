"""What train.py is made of: prompt text, vocabulary, tasks, model, sampled evaluation, checkpoint."""
