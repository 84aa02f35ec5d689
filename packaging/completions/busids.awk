# Reads the output of `usbipd list --json` and prints a line for each wanted busid: busid, tab, name.
# Runs in a shell that completes a command line; packaging/completions.py embeds it in the completions.
#
# wanted=present: of every device; wanted=attached: of those that a client uses; wanted=bound: of every binding
# that names a port.  The document has one key per line, and strings contain no newlines: the key and the
# indentation at the start of a line identify it, whatever the names of devices contain.

function text(line) {
    sub(/^ *"[a-z]+": "/, "", line)
    sub(/",?$/, "", line)
    gsub(/\\u[0-9a-f][0-9a-f][0-9a-f][0-9a-f]|\\[bfnrt]/, " ", line)
    gsub(/\\/, "", line)
    return line
}

/^  "/ { list = $1 }
/^    [{]/ { busid = name = state = "" }
/^      "busid": "/ { busid = text($0) }
/^      "product": "/ { name = text($0) }
/^      "state": "/ { state = text($0) }
/^    [}]/ {
    fits = list == "\"bindings\":" ? wanted == "bound" : wanted == "present" || wanted == state
    if (fits && busid ~ /^[0-9]+-[0-9.]+$/ && !(busid in printed)) {
        printed[busid] = 1
        print busid "\t" name
    }
}
