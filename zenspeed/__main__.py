from zenspeed.cli import main

main()
