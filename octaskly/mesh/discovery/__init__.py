"""Discovery over mDNS: adverts, interfaces and scans."""
