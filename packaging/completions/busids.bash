# shellcheck shell=bash
# The busids that complete the word $2; $1 selects them, see busids.awk.  Runs in bash, including macOS's 3.2.
_usbipd_complete_busid() {
    local index value
    local -a socket
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ ${COMP_WORDS[index]} == --socket ]]; then
            value=${COMP_WORDS[index + 1]}
            [[ $value == = ]] && value=${COMP_WORDS[index + 2]}
            # The value is as typed; xargs removes quotes and backslashes, and expands nothing.
            socket=(--socket "$(printf '%s\n' "$value" | xargs printf '%s')")
        fi
    done
    compgen -W "$(
        command usbipd list --json --timeout 2 ${socket[@]+"${socket[@]}"} </dev/null |
            awk -v wanted="$1" @BUSIDS_AWK@ | cut -f 1
    )" -- "$2"
} 2>/dev/null

_usbipd_present_busids() { _usbipd_complete_busid present "$1"; }
_usbipd_bound_busids() { _usbipd_complete_busid bound "$1"; }
_usbipd_attached_busids() { _usbipd_complete_busid attached "$1"; }
