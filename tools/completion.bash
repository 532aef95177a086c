# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=bash
# For bash: `source tools/completion.bash` has ansible-playbook, ansible and ansible-inventory complete the names of
# containers, lineages and groups after -l, and playbooks. What the inventory has is kept until one of its files changes.

# The source of the inventory that a command line names: -i, else the environment, else ansible.cfg's.
_phoenix_inventory() {
  local place
  for ((place = 1; place < ${#COMP_WORDS[@]} - 1; place++)); do
    case ${COMP_WORDS[place]} in
      -i | --inventory | --inventory-file) printf '%s' "${COMP_WORDS[place + 1]}" && return ;;
    esac
  done
  if [ -n "${ANSIBLE_INVENTORY:-}" ]; then
    printf '%s' "$ANSIBLE_INVENTORY"
  elif [ -f ansible.cfg ]; then
    sed -n 's/^inventory *= *//p' ansible.cfg
  fi
}

# Names of hosts and groups, a line each.
_phoenix_names() {
  local source folder key file
  source=$(_phoenix_inventory)
  [ -e "$source" ] || return 0
  folder=$source
  [ -d "$folder" ] || folder=$(dirname "$source")
  # The lab's inventory reads the example's file.
  key=$( { realpath "$source"; stat -c '%n %Y %s' "$folder"/* "$folder"/../example/*.json; } 2>/dev/null | cksum)
  file=${XDG_CACHE_HOME:-$HOME/.cache}/phoenix-hypervisor/${key// /-}
  if [ ! -e "$file" ]; then
    mkdir -p "${file%/*}"
    # Nothing is kept of one with a mistake.
    ansible-inventory -i "$source" --graph 2>/dev/null >"$file.$$" && mv "$file.$$" "$file"
    rm -f "$file.$$"
  fi
  [ ! -e "$file" ] || sed -E 's/^[| ]*(\|?--)?@?//; s/:$//' "$file" | sort -u
}

_phoenix_complete() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} head=
  COMPREPLY=()
  case $before in
    -l | --limit)
      case $word in *[,:]*) head=${word%"${word##*[,:]}"} ;; esac
      mapfile -t COMPREPLY < <(compgen -P "$head" -W "$(_phoenix_names)" -- "${word#"$head"}")
      ;;
    -i | --inventory) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    *)
      if [[ $word != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -G "${word:-playbooks/}*.yml"; [ -n "$word" ] || compgen -G '*.yml')
      fi
      ;;
  esac
}

# Where this offers nothing, bash offers files.
complete -o default -F _phoenix_complete ansible-playbook ansible-inventory
