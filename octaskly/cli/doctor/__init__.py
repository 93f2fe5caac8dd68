"""`octaskly doctor`: probes, symptoms and findings."""
