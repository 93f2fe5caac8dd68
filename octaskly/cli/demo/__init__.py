"""`octaskly demo`: three agents on this machine share a real job."""
