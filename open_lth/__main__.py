from open_lth.main import main

if __name__ == '__main__':
    main()
