"""What a student takes along to the Hub."""
