"""`octaskly service`: installing and removing the systemd unit."""
