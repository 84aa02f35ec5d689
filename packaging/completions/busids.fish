# Offers busids with the names of their devices; $argv[1] selects them, see busids.awk.  Runs in fish.
function _usbipd_busids
    set -l tokens (commandline -opc)
    set -l socket (string match -r -- '^--socket=.+' $tokens)
    if set -l index (contains -i -- --socket $tokens)
        set socket --socket $tokens[(math $index + 1)]
    end
    command usbipd list --json --timeout 2 $socket 2>/dev/null </dev/null |
        awk -v wanted=$argv[1] @BUSIDS_AWK@
end
