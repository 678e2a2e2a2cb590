"""Files: reading what strangers wrote, writing so that nothing is lost, one seed."""
