"""What the command is compared with cp on: one row of arguments each, in the tree that is made."""

GENERAL = """
    f new
    f new/
    f g into
    f g link into
    -T f new
    -T f into
    -T d new
    -r -T d into
    -rT d into/
    -rT d dlink
    -rT d dlink/
    -t into f g
    -tinto f g
    --target-directory=into f g
    --target-directory into f g
    --target=into f g
    -t missing f
    -t into -T f
    -t f g
    -T f g into
    f
    f g missing
    missing into
    missing f into
    d new
    d f into
    -r d new
    -r d new/
    -r d into
    -R d into
    --recursive d into
    --recurs d new
    -r d/ into
    -r d/. into
    -r d f link fifo dangling dlink missing
    -r d f link fifo dangling dlink new
    -r f link dangling dlink sub
    -r link dangling fifo e
    -r link new
    -r dangling new
    -r fifo new
    -r dlink new
    -r dlink/ new
    link new
    dlink new
    dangling new
    dlink into
    f/ new
    link/ new
    -r f/ new
    -r f d
    -r d f
    -r d e
    -r e/d into
    -r fifo into
    -r d .
    -r d/sub .
    f f
    f h
    f link
    link f
    f .
    link link
    -P link link
    f f sub
    f ./f sub
    f d/f sub
    f d/f g sub
    -r d d sub
    -r d ./d sub
    -r d e/d into
    -r link d/link sub
    -P link new
    -P link f into
    -d link new
    -P dlink new
    -L link new
    -rL link new
    -rL dlink new
    -rL d new
    -aL d into
    -aL d dlink new
    -rH dlink link new
    -rH dlink new
    -rH dlink link e
    -rLP dlink new
    -rPL dlink new
    -rPH dlink new
    -rLH dlink new
    -r --dereference d new
    -r --no-dereference d new
    -p f new
    -p g into
    -rp d new
    -rp d into
    -a d new
    -a d into
    -a d/. into
    -a d f link fifo e
    -a . /dev/null
    --archive d new
    -a --no-preserve=links d new
    -a --no-preserve=mode d new
    -a --no-preserve=all d new
    --no-preserve=all -a d new
    -r --no-preserve=mode d new
    -r --no-preserve=mode fifo new
    --no-preserve=mode g new
    --no-preserve=mode -p g new
    --preserve f new
    --preserve=mode g new
    --preserve=mode g into
    --preserve=timestamps g new
    --preserve=mode,timestamps g new
    --preserve=links f h sub
    --preserve=colour f new
    --no-preserve f new
    --no-preserve= f new
    --preserve= f new
    -r --preserve=links f h d sub
    -dr f h d sub
    -d f h sub
    -d link f h sub
    -d two names sub
    -a g two
    -d g two
    g two
    -L --preserve=links f link sub
    -rL --preserve=links f link sub
    -x -r d new
    -n f into
    -n g into
    -n f new
    -rn d into
    -n fifo into
    -rn fifo into
    -rn link into
    -u f into
    -u g into
    -u f g into
    -ru d into
    -u f new
    --update g into
    --no-clobber f into
    -nu g into
    -f g locked
    -f f into
    --force f into
    --remove-destination f into
    --remove-destination g two
    --remove-destination g into/link
    --remove-destination -r d into
    --remove-destination g dangling
    --remove-destination f f
    f dangling
    f into/link
    --strip-trailing-slashes f/ new
    --strip-trailing-slashes link/ new
    --strip-trailing-slashes -r dlink/ new
    --strip-trailing-slashes -r d/// into
    f new -v
    f g -t into
    d -r new
    -- f new
    -r -- d new
    f -- new
    f new -- extra
    -rpt into d f
    -rptinto d f
    -pr d new
    -r -v d new
    f new --nonsense
    -q f new
"""

BACKUP = """
    -b f new
    -b f into
    -b g into
    -b f g into
    -b f f into
    -b f ./f into
    -b f d/f into
    -b f ./d/../f into
    -b f h into
    -b f link into
    -b link into
    -Pb link into
    -b d into
    -rb d into
    -rbv d into
    -ab d into
    -abv d into
    -rb d d into
    -rb d new
    -rb link fifo into
    -rb f into/link
    -b f into/link
    -b f link
    -b link f
    -Pb link f
    -b f f
    -b f ./f
    -bf f f
    -bfv f ./f
    -bfv f f
    -bf f .
    -bf d/f d/f
    -bfTv f f
    -bf w w
    -bft into f f
    -b w~ w
    -b w w~
    -bv w w~
    --backup=t w~ w
    --backup=t -v w~ w
    -b h f
    -bv f h
    -b f fifo
    -bT f d
    -b d f
    -rb d f
    -rb f d
    -rb e/d into
    --backup f into
    --backup=none -v f into
    --backup=off -v f into
    --backup=numbered -v f into
    --backup=t -v g into
    --backup=existing -v f g into
    --backup=nil -v g into
    --backup=num -v g into
    --backup=n g into
    --backup=nu g into
    --backup=ni -v g into
    --backup=no -v g into
    --backup=e -v g into
    --backup=o -v g into
    --backup=x g into
    --backup= -v g into
    --backup=t -b -v f into
    -b --backup=t -v f into
    --backup=t -r -v d into
    --backup=t -f -v f f
    --backup=t f f into
    --backup=t -v f f f into
    --backup=t f ./f d/f into
    -S .bak -v f into
    -S.bak -v f into
    -S a/b -v f into
    -v -S= f into
    --suffix=.x --backup=t -v f into
    --suffix=.x --backup=none -v f into
    --suffix .x -rv d into
    -bn f into
    -b --no-clobber f new
    -bu f into
    -bu g into
    -bru d into
    -bf g locked
    -b g locked
    -b --remove-destination f into
    -b --remove-destination h f
    -b g dangling
    -b g into/link
    -rb t over
    -rbv t over
    -ab t over
    -b -p g into
    -bp g two
    -ab g two
    -bd two names sub
    -bd f h into
    -abv f h into
    -b missing into
    -bH link into
    -rbL d into
    -bP d/link into
    -rPb link into
    -lb f into
    -lbv f into
    -lb f h
    -lb f f
    -lrb d into
    -lrbv d into
    -sb f g
    -sbv f g
    -sb f h
    -sb f f
    -Pb t/back over/t/back sub
    -Tb f dlink
    -lb link into
    -lrb link fifo into
    -lbP link into
    -sbv link into
    -rLb t over
    -alb t over
    -aTb t over/t
    -aTbv t over/t
    -rfbv t over
    -bPr link t/back into
    -bPd link t/back over/t
    -rb t/one over/t
    -b t/one t/two t/four over/t
    -db t/five t/six over/t
    -dbv two names d/hard d/f into
    -dsb two names into
    -tinto -b -S ^ f
    -bn f new
    -nb f new
    -bi f new
    -sb two names
    -lb two names
    -xab d into
"""

LINK = """
    -l f new
    -lv f new
    -l f into
    -lf f into
    -lfv f into
    -l f h
    -lv f h
    -lf f h
    -l f f
    -l f ./f
    -lu f into
    -lu g into
    -luf g into
    -ln g into
    -lp g new
    -l --remove-destination f into
    -lv --remove-destination f into
    -l link new
    -lP link new
    -lP link into
    -lfP link into
    -lP link f
    -lfP link f
    -l link f
    -l f link
    -lf f link
    -lP f link
    -lfP f link
    -l dangling new
    -lP dangling new
    -l d new
    -lr d new
    -lrv d new
    -lr d into
    -lrf d into
    -lrfv d into
    -al d new
    -alv d new
    -al d into
    -alf d into
    -lrP d new
    -lrL d new
    -lrH dlink new
    -lR fifo new
    -l fifo new
    -l f d
    -lT f d
    -lr d f
    -l f g h into
    -l f f sub
    -lf g dangling
    -lf g into/link
    -lrf t over
    -lrp d new
    -l missing new
    -ls f new
    --link f new
    -rl t over
    -rlf t over
    -Tl f dlink
    -Tlf f dlink
    -lP fifo into
    -lr fifo f into
    -lrP fifo link into
    -al t over
    -alf t over
    -alv t new
    -rPlv t over
    -al two names sub
    -dl two names sub
    -lir d new
    -lu f g into
    -l two names
    -lf two names
    -lv --remove-destination two names
    -rlL dlink new
    -rlH dlink link new
    -rlP dlink link into
"""

SYMBOLIC_LINK = """
    -s f new
    -sv f new
    -s f into
    -s f sub
    -s d/f new
    -sf f g
    -sfv f g
    -s f g
    -s f f
    -sf f f
    -sf f h
    -s f ./new
    -s link new
    -sP link new
    -sr link new
    -s dangling new
    -sP dangling new
    -sf f link
    -sf f dlink
    -sfT f dlink
    -sfT f d
    -su g into/g
    -s d new
    -sr d new
    -srT d .
    -sp f new
    -ap -s f new
    -s --remove-destination f g
    -sv --remove-destination f g
    -s fifo new
    -s f link
    -sf f into/link
    -sn f g
    -st . d/f
    -st . f
    --symbolic-link f new
    -Ts f dlink
    -Tsf f dlink
    -rsT t sub
    -ds two names sub
    -ds two names .
    -dsf two names d/f
    -dsf two new
    -sf two names
    -s --remove-destination two names
"""

PARENTS = """
    --parents d/f into
    --parents d/f d/sub/x into
    --parents d/sub/x sub
    --parents d/sub/x new
    --parents d/sub into
    --parents -r d/sub into
    --parents -r d/sub new
    --parents -r d/sub sub
    --parents -r d/sub/ sub
    --parents -r ./d/sub sub
    --parents -p d/sub/x into
    --parents -p d/sub/x sub
    --parents -a d/sub/x sub
    --parents -a d/sub/x into
    --parents -a d/sub into
    --parents --preserve=timestamps d/sub/x into
    --parents --no-preserve=mode d/sub/x sub
    --parents f sub
    --parents -T d/f sub
    --parents -t sub d/f
    --parents d/missing sub
    --parents missing/f sub
    --parents d/f f sub
    --parents e/d into
    --parents e/d/f into
    --parents dlink/f sub
    --parents -P dlink sub
    --parents -r dlink sub
    --parents d/../d/f sub
    --parents d/link/f sub
    --parents f/x sub
    --parents -b d/f into
    --parents -l d/f sub
    --parents -s d/f sub
    --parents -n d/f into
    --parents -r d d/sub sub
    --parents d/f d/f sub
    --parents d/f ./d/f sub
    --parents d/f d/./f sub
    --parents over/t/one sub
    --parents d/f into/fifo
    --parents -rl t sub
    --parents -ab t/sub t/one over
    --parents -a t/sub t/one over
    --parents -lv t/one t/five t/six over
    --parents -v d/f d/sub/x into
    --parents -abv d/f d/sub/x into
    --parents -av t/five t/six new
    --parents -av t/five t/six sub
    -t sub --parents -rv d/sub/x t/sub/
    --parents --strip-trailing-slashes t/one/ over
    -L --parents dlink/sub/x sub
    -rH --parents dlink sub
    -HR --parents dlink/sub sub
"""

ATTRIBUTES_ONLY = """
    --attributes-only f new
    --attributes-only f into
    --attributes-only -p f into
    --attributes-only -p g into
    --attributes-only -pv g into
    --attributes-only -a g new
    --attributes-only --preserve=mode g into
    --attributes-only --preserve=xattr g into
    --attributes-only -p g link
    --attributes-only -p g two
    --attributes-only -a g two
    --attributes-only -av g two
    --attributes-only -b g into
    --attributes-only -bv g into
    --attributes-only -pb g into
    --attributes-only --remove-destination g into
    --attributes-only -pr d new
    --attributes-only -r d into
    --attributes-only -a d into
    --attributes-only -av d into
    --attributes-only -a t over
    --attributes-only -p g locked
    --attributes-only f f
    --attributes-only -p f h
    --attributes-only -pu g into
    --attributes-only -l f new
    --attributes-only -P link new
    --attributes-only missing new
    --attributes-only d new
    --attr -p g into
    -rp --attributes-only t over
    -r --attributes-only -b t over
    --attributes-only -aL t over
    -P --attributes-only link into
    -Pf --attributes-only link into
    -rP --attributes-only link fifo into
    -a --attributes-only link fifo into
    --attributes-only f fifo2
"""

COPY_CONTENTS = """
    --copy-contents f new
    --copy-contents -a t new
    --copy-contents -r link new
    --copy-contents -r t over
    --copy-contents -rv t over
    --copy-contents -r link dangling new
    --copy-contents -rp t new
    --copy-contents -rl d new
"""

THROUGH_LINKS = """
    -r t over
    -r t/. over/t
    -rT t over/t
    -rv t/one over/t
    -rt over/t t/one t/two
    -rt over/t t/four t/three
    -a t over
    -a t/one t/two over/t
    -av t/one t/two over/t
    -d t/one t/two over/t
    -rp t/one t/two t/four over/t
    -rpT t over/t
    -p t/one over/t
    -p t/two over/t
    -ru t/one t/two over/t
    -rn t over
    -rL t over
    -rf t over
    -r --remove-destination t over
    -a --remove-destination t over
    -rv --remove-destination t/one t/two over/t
    -rT t/sub over/t/sub
    -r t/sub over/t
    -r t/sub/. over/t/sub/
    -P link t/one sub
    -rP d/up over/t/one sub
    -P t/back over/t/back sub
    -P t/back over/t/back t/one sub
    -P dangling t/one into/link sub
    -aT t over/t
    -aT --remove-destination -v t over/t
    -ruv t over
    -anv t over
    -apbS.x t over
    -d t/five t/six over/t
    -dv t/five t/six sub
"""

CONTEXT = """
    -Z f new
    -Z f into
    --context f new
    --context=foo f new
    --context=foo -r d new
    -Z -a d new
    -Z --preserve=context f new
    -aZ d into
"""

VERBOSE = """
    -v f new
    -v f g into
    -rv d new
    -rv d into
    -av d new
    -av d into
    -dv f h sub
    -pv f into
    -v f f
    -fv g locked
    -rfv d into
    -v --remove-destination f into
    -rv --remove-destination d into
    -Pv link new
    -Pv link into
    -rv link fifo dangling new
    -av g two
    -rv f d/f new
    -nv f into
    -uv f g into
    -v link new
    -rv dlink new
    -rv dlink/ new
    -rv d/. into
    -rv d/ into
    -aLv d into
    -rLv d new
    --verbose f new
    --remove-destination -v two names
    -iv f new
"""

SAME = """
    -Pr d/link link sub
    -r d/link f sub
    -P link d/link sub
    -d link sub
    -P link f
    -Pr link f
    -Pr --remove-destination link f
    -P f link
    -d f link
    -Pr link link
    -P link dlink
    -PT link dlink
    -PTf link dlink
    -T f dlink
    -T --remove-destination f dlink
    --remove-destination h f
    --remove-destination f h
    --remove-destination link f
    --remove-destination f link
    --remove-destination two names
    --preserve=mo,time f new
    --preserve=x g new
    --preserve=,mode f new
    --preserve=l f h sub
    --no-preserve=o,m -p g new
    -fi f new
    -rx d new
"""

ROWS = [
    row.strip()
    for rows in (
        GENERAL,
        BACKUP,
        LINK,
        SYMBOLIC_LINK,
        PARENTS,
        ATTRIBUTES_ONLY,
        COPY_CONTENTS,
        THROUGH_LINKS,
        CONTEXT,
        VERBOSE,
        SAME,
    )
    for row in rows.strip().splitlines()
]
