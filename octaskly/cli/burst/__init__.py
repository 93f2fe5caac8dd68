"""`octaskly burst`: visitors on demand, started by a command of the user."""
