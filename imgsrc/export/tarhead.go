package export

import (
	"path"
	"strconv"
	"strings"

	"github.com/imgfs/imgfs/imgsrc"
)

const blockSize = 512

// trailer is what a tar ends with.
var trailer [2 * blockSize]byte

// The type flags of entries.
const (
	typeRegular = '0'
	typeLink    = '1'
	typeSymlink = '2'
	typeChar    = '3'
	typeBlock   = '4'
	typeDir     = '5'
	typeFIFO    = '6'
	typePAX     = 'x'
)

// What fits into the fields of a ustar header (POSIX.1-1988).
const (
	nameField   = 100
	prefixField = 155
	maxOctal7   = 1<<21 - 1 // seven octal digits
	maxOctal11  = 1<<33 - 1 // eleven
)

// A header is one entry of a tar.
type header struct {
	name         string // a directory's ends in a slash
	typ          byte
	link         string
	mode         uint32 // permissions
	uid, gid     uint32
	size         int64 // of the body in the tar
	sec          int64
	nsec         uint32
	major, minor uint32
	xattrs       []imgsrc.Xattr

	sparse   bool  // the body is a map of the file's data, and the data
	realSize int64 // then, of the file
}

// appendHeader appends the blocks of an entry's header: ustar, preceded by PAX records for what does not fit into that. The
// same header gives the same bytes always. Names are bytes: a record holds one as it stands, like GNU tar's.
func appendHeader(b []byte, h *header) []byte {
	var records []byte
	add := func(key, value string) { records = appendRecord(records, key, value) }
	name, prefix, fits := splitName(h.name)
	if h.sparse {
		add("GNU.sparse.major", "1")
		add("GNU.sparse.minor", "0")
		add("GNU.sparse.name", h.name)
		add("GNU.sparse.realsize", strconv.FormatInt(h.realSize, 10))
		// Who does not know of sparse files finds the map and the data under this name.
		if name, prefix, fits = splitName(path.Join(path.Dir(h.name), "GNUSparseFile.0", path.Base(h.name))); !fits {
			name, prefix = cut("GNUSparseFile.0/"+path.Base(h.name)), ""
		}
	} else if !fits {
		add("path", h.name)
		name, prefix = cut(h.name), ""
	}
	link := h.link
	if len(link) > nameField {
		add("linkpath", link)
		link = cut(link)
	}
	number := func(key string, v, most int64) int64 {
		if v <= most {
			return v
		}
		add(key, strconv.FormatInt(v, 10))
		return 0
	}
	size := number("size", h.size, maxOctal11)
	uid := number("uid", int64(h.uid), maxOctal7)
	gid := number("gid", int64(h.gid), maxOctal7)
	sec := h.sec
	if h.nsec != 0 || sec < 0 || sec > maxOctal11 {
		add("mtime", timeText(h.sec, h.nsec))
		if sec < 0 || sec > maxOctal11 {
			sec = 0
		}
	}
	for _, x := range h.xattrs {
		add("SCHILY.xattr."+escapeXattr(x.Name), x.Value)
	}
	if len(records) > 0 {
		b = appendBlock(b, &block{name: cut("PaxHeaders.0/" + path.Base(h.name)), typ: typePAX, mode: 0o644, size: int64(len(records))})
		b = append(b, records...)
		b = append(b, padding(int64(len(records)))...)
	}
	return appendBlock(b, &block{
		name: name, prefix: prefix, typ: h.typ, link: link, mode: h.mode, uid: uid, gid: gid, size: size, sec: sec, major: h.major, minor: h.minor,
	})
}

// A block is what a ustar header says.
type block struct {
	name, prefix, link  string
	typ                 byte
	mode                uint32
	uid, gid, size, sec int64
	major, minor        uint32
}

func appendBlock(b []byte, h *block) []byte {
	at := len(b)
	b = append(b, make([]byte, blockSize)...)
	f := b[at:]
	copy(f[:nameField], h.name)
	octal(f[100:108], int64(h.mode))
	octal(f[108:116], h.uid)
	octal(f[116:124], h.gid)
	octal(f[124:136], h.size)
	octal(f[136:148], h.sec)
	f[156] = h.typ
	copy(f[157:257], h.link)
	copy(f[257:265], "ustar\x0000")
	octal(f[329:337], int64(h.major))
	octal(f[337:345], int64(h.minor))
	copy(f[345:500], h.prefix)
	sum := int64(8 * ' ') // the field itself counts as blanks
	for _, c := range f {
		sum += int64(c)
	}
	octal(f[148:155], sum)
	f[155] = ' '
	return b
}

// octal fills a field with digits, but for a NUL at its end.
func octal(field []byte, v int64) {
	for i := len(field) - 2; i >= 0; i-- {
		field[i] = '0' + byte(v&7)
		v >>= 3
	}
}

// padding is what fills a body's last block.
func padding(size int64) []byte { return trailer[:-size&(blockSize-1)] }

// padded is a body's length with its padding.
func padded(size int64) int64 { return (size + blockSize - 1) &^ (blockSize - 1) }

// splitName divides a name between the fields of a ustar header. Not ok if it does not fit.
func splitName(full string) (name, prefix string, ok bool) {
	if len(full) <= nameField {
		return full, "", true
	}
	if len(full) > nameField+1+prefixField {
		return "", "", false
	}
	// The first slash that leaves a name that fits leaves the shortest prefix. The one that ends a directory's name
	// belongs to that.
	from := len(full) - nameField - 1
	i := strings.IndexByte(full[from:len(full)-1], '/')
	if i < 0 || from+i == 0 || from+i > prefixField {
		return "", "", false
	}
	return full[from+i+1:], full[:from+i], true
}

// cut is as much of a name as a field takes.
func cut(s string) string { return s[:min(len(s), nameField)] }

// appendRecord appends a PAX record: its own length in decimal digits, a blank, and key=value with a newline.
func appendRecord(b []byte, key, value string) []byte {
	rest := len(key) + len(value) + 3
	n := rest + 1
	for n != rest+digits(n) {
		n = rest + digits(n)
	}
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, ' ')
	b = append(b, key...)
	b = append(b, '=')
	b = append(b, value...)
	return append(b, '\n')
}

func digits(n int) int { return len(strconv.Itoa(n)) }

// timeText is a time in decimal, as exact as it is.
func timeText(sec int64, nsec uint32) string {
	sign := ""
	if sec < 0 && nsec > 0 { // -2 s and 0.5e9 ns is -1.5
		sec, nsec = sec+1, 1e9-nsec
		if sec == 0 {
			sign = "-"
		}
	}
	s := sign + strconv.FormatInt(sec, 10)
	if nsec == 0 {
		return s
	}
	frac := strconv.Itoa(1e9 + int(nsec))[1:]
	return s + "." + strings.TrimRight(frac, "0")
}

// escapeXattr is an attribute's name in a record's key, which must have no "=". GNU tar writes %3D for that, and reads
// %25 as "%": one that is none is left alone, because nobody else knows of the escape.
func escapeXattr(name string) string {
	if !strings.ContainsAny(name, "=%") {
		return name
	}
	name = strings.NewReplacer("%25", "%2525", "%3D", "%253D").Replace(name)
	return strings.ReplaceAll(name, "=", "%3D")
}
